package integration

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// This file sends what JavaScript SDKs send, byte by byte.

const (
	jsEvent  = "/js/v3/event/db/tbl"
	jsTarget = jsEvent + "?api_key=1234%2Fabcd&modified=1767225600000"

	// fetched is what SDK 3 adds to a request of its own.
	fetched = "Origin: https://shop.example\r\nX-TD-Write-Key: 1234/abcd\r\nX-TD-Fetch-Api: true\r\n" + asJSON

	createdJSON = `{"created":true}`
	createdJS   = `/**/TreasureJSONPCallback0({"created":true});`
)

// jsData is a parameter data with a record.
func jsData(record string) string {
	return "&data=" + url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(record)))
}

// jsonp is J1: a script tag's GET.
func jsonp(record, more string) string {
	return get(jsTarget+jsData(record)+more+"&callback=TreasureJSONPCallback0", "Referer: https://shop.example/\r\nSec-Fetch-Dest: script\r\n")
}

// TestJS sends each form in which JavaScript SDKs send records, and looks at what v2
// gets and at the answer.
func TestJS(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "servers {\n max_header_size 2MiB\n}\n", "td_postback {\n upstream "+u.url()+"\n}")
	const placeholders = `"td_browser":"td_browser","td_browser_version":"td_browser_version","td_os":"td_os","td_os_version":"td_os_version"`
	now := strconv.FormatInt(time.Now().Unix(), 10)
	for _, tc := range []struct {
		name, request string
		body          string // that v2 gets; object, if empty
		json          bool   // the answer
		fields        []string
	}{
		{name: "J1, SDK 1.4 to 2.5", request: jsonp(object, "")},
		{name: "J1 with a time", request: jsonp(object, "&time="+now), body: `{"a":1,"td_record_time":` + now + `}`},
		{name: "J1 with milliseconds", request: jsonp(object, "&time="+now+"000")},
		{name: "J1 in the order of SDK 0.1", request: get(jsEvent+"?api_key=1234%2Fabcd"+jsData(object)+"&modified=1&callback=TreasureJSONPCallback0", "")},
		{name: "J1, a raw slash in the key", request: get(jsEvent+"?api_key=1234/abcd"+jsData(object)+"&callback=TreasureJSONPCallback0", "")},
		{name: "J1, scheme-relative, slashes", request: get("//js/v3/event/db/tbl/?api_key=1234%2Fabcd"+jsData(object)+"&callback=TreasureJSONPCallback0", "")},
		{name: "J1 with a body", request: "GET " + jsTarget + jsData(object) + "&callback=TreasureJSONPCallback0 HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"},
		{name: "J1, conditional", request: get(jsTarget+jsData(object)+"&callback=TreasureJSONPCallback0", "If-None-Match: \"x\"\r\nRange: bytes=0-1\r\n")},
		{name: "J1, what a page view has", request: jsonp(`{"td_title":"td_title",`+placeholders+`,"td_ip":"td_ip","td_global_id":"td_global_id"}`, ""), body: `{"td_title":"td_title","td_ip":"127.0.0.1"}`},
		{
			name:    "J1 with the cookie",
			request: get(jsTarget+jsData(`{"td_global_id":"td_global_id"}`)+"&callback=TreasureJSONPCallback0", "Cookie: _td_global=gid-7\r\n"),
			body:    `{"td_global_id":"gid-7"}`,
		},
		{name: "J1 with an emoji of SDK 1.7 to 2.5", request: jsonp("{\"a\":\"\xed\xa0\xbd\xed\xb8\x80\"}", ""), body: `{"a":"😀"}`},
		{name: "J1, 10 kB", request: jsonp(objectOf(10_000), ""), body: objectOf(10_000)},
		{name: "J1, 500 kB", request: jsonp(objectOf(500_000), ""), body: objectOf(500_000)},
		{name: "J1 without a callback", request: get(jsTarget+jsData(object), ""), json: true},
		{name: "J1, an empty callback", request: get(jsTarget+jsData(object)+"&callback=", ""), json: true},
		{name: "J2, SDK 2.3 to 2.5", request: post(jsTarget+jsData(object), "Origin: https://shop.example\r\n", ""), json: true},
		{name: "J2 with a time", request: post(jsTarget+jsData(object)+"&time="+now, "", ""), body: `{"a":1,"td_record_time":` + now + `}`, json: true},
		{name: "J2, chunked", request: "POST " + jsTarget + jsData(object) + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", json: true},
		{name: "J3, SDK 0.1 to 1.3", request: post(jsEvent, "Origin: https://shop.example\r\nX-TD-WRITE-KEY: 1234/abcd\r\n"+asJSON, object), json: true},
		{name: "J4, SDK 3", request: post(jsEvent+"?modified=1767225600000", fetched, object), json: true, fields: []string{"X-Td-Fetch-Api: true"}},
		{name: "J4 with a time", request: post(jsEvent+"?modified=1767225600000&time="+now, fetched, object), body: `{"a":1,"td_record_time":` + now + `}`, json: true},
		{name: "J4 with placeholders", request: post(jsEvent, fetched+"Content-MD5: x\r\n", `{`+placeholders+`,"td_ip":"td_ip"}`), body: `{"td_ip":"127.0.0.1"}`, json: true},
		{name: "J5", request: post(jsTarget, asJSON, object), json: true},
		{name: "J6, PHP", request: post(jsEvent, "x-td-write-key: 1234/abcd\r\nAccept: application/json\r\n"+asJSON, object), json: true, fields: []string{"Accept: application/json"}},
		{name: "J6 without a type", request: post(jsEvent, "X-TD-Write-Key: 1234/abcd\r\n", object), json: true},
		{name: "J6, curl -d", request: post(jsEvent, "X-TD-Write-Key: 1234/abcd\r\nContent-Type: application/x-www-form-urlencoded\r\n", object), json: true},
		{name: "J6, a byte-order mark", request: post(jsEvent, "X-TD-Write-Key: 1234/abcd\r\n"+asJSON, "\ufeff"+object), json: true},
		{name: "J6, no UTF-8", request: post(jsEvent, "X-TD-Write-Key: 1234/abcd\r\n"+asJSON, "{\"a\":\"\xe9\"}"), body: `{"a":"` + "\ufffd" + `"}`, json: true},
		{name: "J6, 200 kB", request: post(jsTarget, asJSON, `{"td_ip":"td_ip",`+objectOf(200_000)[1:]), body: `{"td_ip":"127.0.0.1",` + objectOf(200_000)[1:], json: true},
		{name: "J6, the largest", request: post(jsTarget, asJSON, objectOf(v2Cap)), body: objectOf(v2Cap), json: true},
		{name: "J6, the largest, with a time", request: post(jsTarget+"&time="+now, asJSON, objectOf(v2Cap)), body: objectOf(v2Cap), json: true},
		{name: "a body beside data", request: post(jsTarget+jsData(`{"b":2}`), asJSON, object), json: true},
		{name: "columns in the query", request: post(jsTarget+"&b=2&td_format=pixel&td_redirect=https://x.example/", asJSON, object), json: true},
		{name: "td_write_key", request: post(jsEvent+"?td_write_key=1234/abcd&api_key=5/ef", asJSON, object), json: true},
		{name: "TD1", request: post(jsEvent, "Authorization: TD1 1234/abcd\r\n"+asJSON, object), json: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			kind, body := "application/javascript; charset=utf-8", createdJS
			if tc.json {
				kind, body = "application/json", createdJSON
			}
			if answer.StatusCode != 200 || answer.body != body || answer.Header.Get("Content-Type") != kind || answer.Header.Get("Cache-Control") != "no-store" {
				t.Fatalf("got %d %q %q", answer.StatusCode, answer.Header, answer.body)
			}
			if nosniff := answer.Header.Get("X-Content-Type-Options"); (nosniff == "nosniff") == tc.json {
				t.Errorf("X-Content-Type-Options %q", nosniff)
			}
			got := u.next(t)
			if got.line != "POST "+event+" HTTP/1.1" {
				t.Errorf("request line %q", got.line)
			}
			if want := cmp.Or(tc.body, object); got.body != want {
				t.Errorf("record %.200q, want %.200q", got.body, want)
			}
			for name, want := range map[string][]string{
				"Content-Type": {"application/json"}, "Content-Length": {fmt.Sprint(len(got.body))},
				"Content-Encoding": nil, "If-None-Match": nil, "Range": nil, "Cookie": nil, "Content-Md5": nil,
			} {
				if values := got.field(name); !slices.Equal(values, want) {
					t.Errorf("%s: %q, want %q", name, values, want)
				}
			}
			if keys := slices.Concat(got.field("X-TD-Write-Key"), got.field("Authorization")); len(keys) != 1 || strings.TrimPrefix(keys[0], "TD1 ") != "1234/abcd" {
				t.Errorf("keys %q", keys)
			}
			for _, field := range tc.fields {
				if !slices.Contains(got.fields, field) {
					t.Errorf("no %q in %q", field, got.fields)
				}
			}
			u.none(t)
		})
	}
}

// TestJSRefused: what is refused is a real 4xx, in JSON, calls no callback, and does
// not go to v2.
func TestJSRefused(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "servers {\n max_header_size 4MiB\n}\n", "td_postback {\n upstream "+u.url()+"\n}")
	for name, tc := range map[string]struct {
		request string
		status  int
		code    string
	}{
		"no key":                   {get(jsEvent+"?callback=f"+jsData(object), ""), 403, "missing_write_key"},
		"an empty key":             {get(jsEvent+"?api_key=&callback=f"+jsData(object), ""), 403, "missing_write_key"},
		"a bad key":                {get(jsEvent+"?api_key=%zz&callback=f"+jsData(object), ""), 400, "invalid_write_key"},
		"no data":                  {get(jsTarget+"&callback=f", ""), 400, "invalid_request"},
		"empty data":               {get(jsTarget+"&callback=f&data=", ""), 400, "invalid_request"},
		"data that is no base64":   {get(jsTarget+"&callback=f&data=%7B%7D", ""), 400, "invalid_request"},
		"data that is no JSON":     {jsonp("hello", ""), 400, "invalid_request"},
		"data that is an array":    {jsonp("["+object+"]", ""), 400, "invalid_request"},
		"data that is half":        {jsonp(`{"a":`, ""), 400, "invalid_request"},
		"data that is two":         {jsonp(object+object, ""), 400, "invalid_request"},
		"a callback of script":     {get(jsTarget+jsData(object)+"&callback=alert(1)//", ""), 400, "invalid_request"},
		"a callback of HTML":       {get(jsTarget+jsData(object)+"&callback=%3Cscript%3E", ""), 400, "invalid_request"},
		"a long callback":          {get(jsTarget+jsData(object)+"&callback="+strings.Repeat("a", 129), ""), 400, "invalid_request"},
		"J2 without data":          {post(jsTarget, "", ""), 400, "invalid_request"},
		"J4 of SDK 3.1.0, no body": {post(jsEvent, fetched, ""), 400, "invalid_request"},
		"a batch of SDK 4":         {post(jsEvent, "Authorization: TD1 1234/abcd\r\nContent-Type: Application/vnd.treasuredata.v1.js+json; charset=utf-8\r\n", `{"events":[{}]}`), 400, "invalid_request"},
		"a body that is an array":  {post(jsTarget, asJSON, "["+object+"]"), 400, "invalid_request"},
		"a body that is no JSON":   {post(jsTarget, asJSON, "hello"), 400, "invalid_request"},
		"a form":                   {post(jsEvent, "Content-Type: application/x-www-form-urlencoded\r\n", "api_key=1234/abcd"+jsData(object)), 403, "missing_write_key"},
		"a body above the cap":     {post(jsTarget, asJSON, objectOf(v2Cap+1)), 413, "payload_too_large"},
		"data above the cap":       {jsonp(objectOf(v2Cap+1), ""), 413, "payload_too_large"},
		"filled above the cap":     {post(jsTarget, asJSON, `{"td_ip":"td_ip",`+objectOf(v2Cap - 16)[1:]), 413, "payload_too_large"},
		"mended above the cap":     {post(jsTarget, asJSON, strings.Replace(objectOf(v2Cap), "xx", "\xff\xff", 1)), 413, "payload_too_large"},
		"no table":                 {get("/js/v3/event/db?callback=f", ""), 400, "invalid_path"},
		"a bad name":               {get("/js/v3/event/db/t-1?callback=f", ""), 400, "invalid_path"},
		"another method":           {"PUT " + jsTarget + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, "method_not_allowed"},
		"global id":                {get("/js/v3/global_id?callback=f", ""), 404, "not_found"},
		"global id of SDK 3":       {get("/js/v3/enable_global_id", "Origin: https://shop.example\r\n"), 404, "not_found"},
		"preflight of that":        {"OPTIONS /js/v3/enable_global_id HTTP/1.1\r\nHost: x\r\nOrigin: https://shop.example\r\n\r\n", 404, "not_found"},
		"SDK 3.1.0's default":      {post("/db/tbl", asJSON, `{"events":[{}]}`), 404, "not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != tc.status || answer.code() != tc.code || answer.Header.Get("Content-Type") != "application/json" {
				t.Errorf("got %d %q %q, want %d %s", answer.StatusCode, answer.Header, answer.body, tc.status, tc.code)
			}
			if strings.Contains(answer.body, "created") || strings.Contains(answer.body, "abcd") {
				t.Errorf("got %q", answer.body)
			}
			u.none(t)
		})
	}
}

// TestJSAnswers: only a record that v2 has taken is told as created.
func TestJSAnswers(t *testing.T) {
	t.Parallel()
	said := answerOK
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool { _, err := io.WriteString(conn, said); return err == nil })
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	harmless := map[string]string{"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
	refusal := func(fields, body string) string {
		return fmt.Sprintf("HTTP/1.1 400 Bad Request\r\n%sContent-Length: %d\r\n\r\n%s", fields, len(body), body)
	}
	for _, tc := range []struct {
		name, said string
		status     int
		body       string // if it is not taken
		header     map[string]string
	}{
		{name: "taken", said: answerOK, status: 200},
		{name: "taken without content", said: "HTTP/1.1 204 No Content\r\n\r\n", status: 200},
		{
			name: "taken, v2 describes its own body", status: 200,
			said:   "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: \"x\"\r\nContent-MD5: x\r\nrepr-digest: x\r\nCache-Control: max-age=9\r\nX-Request-Id: q\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("x", 20_000),
			header: map[string]string{"Content-Encoding": "", "Etag": "", "Content-Md5": "", "Repr-Digest": "", "Cache-Control": "no-store", "X-Request-Id": "q"},
		},
		{name: "refused", said: "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + `{"error":"x"}`, status: 403, body: `{"error":"x"}`},
		{name: "a limit", said: "HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nno", status: 429, body: "no", header: map[string]string{"Retry-After": "3", "Cache-Control": "no-store"}},
		{name: "refused with a script", said: refusal("Content-Type: application/javascript\r\n", createdJS), status: 400, body: createdJS, header: harmless},
		{name: "refused with a page", said: refusal("content-type: text/html\r\n", "<script>f()</script>"), status: 400, body: "<script>f()</script>", header: harmless},
		{name: "refused with two types", said: refusal("Content-Type: application/json\r\nContent-Type: text/html\r\n", "<script>f()</script>"), status: 400, body: "<script>f()</script>", header: harmless},
		{name: "refused without a type", said: refusal("x-content-type-options: off\r\n", "<script>f()</script>"), status: 400, body: "<script>f()</script>", header: harmless},
		{
			name: "refused, to be kept", said: refusal("Content-Type: Application/JSON; charset=utf-8, text/html\r\nCache-Control: public, max-age=9\r\n", "{}"), status: 400, body: "{}",
			header: map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
		},
		{name: "status 000", said: "HTTP/1.1 000 Odd\r\nContent-Length: 2\r\n\r\n{}", status: 502, body: "upstream_unreachable"},
		{name: "down", said: "HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", status: 503, body: "no"},
		{name: "a redirect", said: "HTTP/1.1 302 Found\r\nLocation: https://x.example/\r\nContent-Length: 2\r\n\r\n{}", status: 502, body: "upstream_unreachable", header: map[string]string{"Location": ""}},
		{name: "not modified", said: "HTTP/1.1 304 Not Modified\r\n\r\n", status: 502, body: "upstream_unreachable"},
		{name: "breaks off", said: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n", status: 502, body: "upstream_unreachable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for form, request := range map[string]string{"J1": jsonp(object, ""), "J2": post(jsTarget+jsData(object), "", ""), "J4": post(jsEvent, fetched, object)} {
				said = tc.said
				answer := raw(t, g.addr, request)
				u.next(t)
				want := tc.body
				if want == "" && form == "J1" {
					want = createdJS
				} else if want == "" {
					want = createdJSON
				}
				if answer.StatusCode != tc.status || answer.body != want && answer.code() != want {
					t.Errorf("%s: got %d %q, want %d %q", form, answer.StatusCode, answer.body, tc.status, want)
				}
				if origins := answer.Header.Values("Access-Control-Allow-Origin"); form == "J4" && !slices.Equal(origins, []string{"https://shop.example"}) {
					t.Errorf("%s: a page cannot read it: %q", form, origins)
				}
				for name, want := range tc.header {
					if got := strings.Join(answer.Header.Values(name), ", "); got != want {
						t.Errorf("%s: %s: %q, want %q", form, name, got, want)
					}
				}
			}
		})
	}
}

// TestJSFromPages: a page of any origin can send with credentials, as SDK 3 does, and
// read refusals too.
func TestJSFromPages(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	answer := raw(t, g.addr, "OPTIONS "+jsEvent+" HTTP/1.1\r\nHost: x\r\nOrigin: https://shop.example\r\n"+
		"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,x-td-fetch-api,x-td-write-key\r\n\r\n")
	want := map[string][]string{
		"Allow-Origin": {"https://shop.example"}, "Allow-Credentials": {"true"},
		"Allow-Methods": {"GET, POST, OPTIONS"}, "Allow-Headers": {"content-type,x-td-fetch-api,x-td-write-key"},
		"Max-Age": {"86400"},
	}
	if got := corsOf(answer.Header); answer.StatusCode != 204 || !maps.EqualFunc(got, want, slices.Equal) || !slices.Contains(answer.Header["Vary"], "Origin") {
		t.Errorf("preflight: %d %q", answer.StatusCode, answer.Header)
	}
	want = map[string][]string{"Allow-Origin": {"https://shop.example"}, "Allow-Credentials": {"true"}}
	for request, status := range map[string]int{
		post(jsEvent, fetched, object):                                                 200,
		post(jsEvent, fetched, "no"):                                                   400,
		post(jsTarget+jsData(object), fetched, ""):                                     200,
		get(jsTarget+jsData(object)+"&callback=f", "Origin: https://shop.example\r\n"): 200,
		get("/js/v3/enable_global_id", "Origin: https://shop.example\r\n"):             404,
	} {
		answer := raw(t, g.addr, request)
		if got := corsOf(answer.Header); answer.StatusCode != status || !maps.EqualFunc(got, want, slices.Equal) || !slices.Contains(answer.Header["Vary"], "Origin") {
			t.Errorf("%.60q: %d %q", request, answer.StatusCode, answer.Header)
		}
	}
}

// TestJSSurfaces: a call of a surface that is switched off is like any other path.
func TestJSSurfaces(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	for _, tc := range []struct {
		options   string
		js, other int
	}{
		{"", 200, 200},
		{"surfaces js", 200, 404},
		{"surfaces postback", 404, 200},
		{"surfaces mobile postback\n pass_thru", 299, 200},
		{"surfaces js mobile\n pass_thru", 200, 299},
	} {
		g := serve(t, "", "route {\n td_postback {\n upstream "+u.url()+"\n"+tc.options+"\n}\n respond 299\n}")
		for request, status := range map[string]int{jsonp(object, ""): tc.js, post(target, asJSON, object): tc.other} {
			if answer := raw(t, g.addr, request); answer.StatusCode != status || status == 404 && answer.code() != "not_found" {
				t.Errorf("%q: %.40q: got %d %q, want %d", tc.options, request, answer.StatusCode, answer.body, status)
			}
		}
	}
	g := serve(t, "", "route {\n td_postback {\n upstream "+u.url()+"\n handoff\n}\n respond 299\n}")
	if answer := raw(t, g.addr, jsonp(object, "")); answer.StatusCode != 404 {
		t.Errorf("with handoff: got %d %q", answer.StatusCode, answer.body)
	}
}

// TestJSKept: a record that v2 does not take now is kept, told as created, and
// delivered once.
func TestJSKept(t *testing.T) {
	t.Parallel()
	for name, spool := range map[string]string{"on_failure": "", "always": "mode always"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v2 := startFickle(t)
			v2.goAway(closes)
			g := serveSpool(t, v2.url(), "", spool)
			for id, request := range map[string]string{
				"1": get(jsEvent+"?api_key="+spoolKey+"&modified=1&callback=TreasureJSONPCallback0"+jsData(withID("1")), ""),
				"2": post(jsEvent+"?api_key="+spoolKey+jsData(withID("2")), "", ""),
				"3": post(jsEvent, asJSON+"X-TD-Write-Key: "+spoolKey+"\r\n", withID("3")),
			} {
				want := createdJSON
				if id == "1" {
					want = createdJS
				}
				if answer := raw(t, g.addr, request); answer.StatusCode != 200 || answer.body != want {
					t.Errorf("%s: got %d %q", id, answer.StatusCode, answer.body)
				}
			}
			v2.comeBack()
			v2.await(t, "1", "2", "3")
			g.awaitEmpty(t)
			for _, r := range v2.all() {
				if r.line != "POST "+event+" HTTP/1.1" || !strings.Contains(r.body, `"td_record_time":`) || strings.Contains(strings.Join(r.fields, "\n"), "api_key") {
					t.Errorf("v2 saw %q %q %s", r.line, r.fields, r.body)
				}
			}
			if answer := raw(t, g.addr, jsonp("no JSON", "")); answer.StatusCode != 400 {
				t.Errorf("no JSON: got %d %q", answer.StatusCode, answer.body)
			}
			saysNoSecret(t, g.process)
		})
	}
}

// TestJSUnkept: a record that is neither taken nor kept is not told as created.
func TestJSUnkept(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(answers("503", ""))
	g := serveSpool(t, v2.url(), "", "max_size 1MiB")
	for range 100 {
		answer := raw(t, g.addr, post(jsTarget, asJSON, objectOf(100_000)))
		if answer.StatusCode == 200 && answer.body == createdJSON {
			continue
		}
		if answer.StatusCode != 503 || answer.code() != "spool_full" {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
		answer = raw(t, g.addr, jsonp(objectOf(100_000), ""))
		if answer.StatusCode == 200 || strings.Contains(answer.body, "Callback") {
			t.Errorf("JSONP: got %d %q", answer.StatusCode, answer.body)
		}
		return
	}
	t.Error("the spool is never full")
}

// TestJSBatch: kept records of JavaScript SDKs share requests, their times as time.
func TestJSBatch(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, func(*batchArrival) batchAnswer { return batchAnswer{} })
	g := serveSpool(t, v2.URL, "", always)
	now := strconv.FormatInt(time.Now().Unix(), 10)
	for n := range 20 {
		record := jsData(withID(strconv.Itoa(n)))
		request := get(jsEvent+"?api_key="+spoolKey+"&time="+now+"&callback=TreasureJSONPCallback0"+record, "")
		if n%2 == 1 {
			request = post(jsEvent+"?api_key="+spoolKey+"&time="+now+record, "", "")
		}
		if answer := raw(t, g.addr, request); answer.StatusCode != 200 || !strings.Contains(answer.body, createdJSON) {
			t.Fatalf("got %d %q", answer.StatusCode, answer.body)
		}
	}
	g.awaitEmpty(t)
	records := 0
	v2.mu.Lock()
	defer v2.mu.Unlock()
	for _, a := range v2.arrivals {
		records += len(a.records)
		for _, record := range a.records {
			if !a.batch || !strings.Contains(record, `"time":`+now) || strings.Contains(record, "td_record_time") {
				t.Errorf("batch %v: %s", a.batch, record)
			}
		}
	}
	if records != 20 {
		t.Errorf("%d records arrived", records)
	}
}

// TestJSOutcome: metrics and the access log know the kinds, and no log, metric or
// answer has a key.
func TestJSOutcome(t *testing.T) {
	t.Parallel()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	u := startRecorder(t, nil)
	g := serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\nlog {\n format filter {\n request td_key\n resp_headers td_key\n uri td_key\n}\n}\n}\nhttp://:%s {\nlog\ntd_postback {\n upstream %s\n}\n}\n",
		withAdmin(admin), port, u.url()))
	saysNoSecret(t, g.process)
	for _, tc := range []struct{ request, kind, key, result string }{
		{get(jsEvent+"?api_key="+spoolKey+jsData(object)+"&callback=f", "Referer: https://x.example/?api_key="+spoolKey+"\r\n"), "jsonp", "param", "forwarded"},
		{get(jsEvent+"?api_key="+spoolKey+jsData("no")+"&callback=f", ""), "jsonp", "param", "invalid_request"},
		{post(jsEvent+"?api_key="+spoolKey+jsData(object), "", ""), "js", "param", "forwarded"},
		{post(jsEvent, "X-TD-Write-Key: "+spoolKey+"\r\nX-Original: /js/v3/event?api_key="+spoolSecret+"\r\n", object), "js", "header", "forwarded"},
		{post(jsEvent, "Authorization: TD1 "+spoolKey+"\r\n", object), "js", "td1", "forwarded"},
		{get(jsEvent+"?api_key="+spoolKey+"&callback=f", ""), "js", "param", "invalid_request"},
		{post(jsEvent, "", object), "js", "none", "missing_write_key"},
		{"OPTIONS " + jsEvent + " HTTP/1.1\r\nHost: x\r\nOrigin: https://x.example\r\n\r\n", "other", "none", "preflight"},
	} {
		before := awaitIdle(t, admin)
		raw(t, addr, tc.request)
		name := requestsTotal(tc.kind, tc.key, tc.result)
		if after := awaitIdle(t, admin); after[name] != before[name]+1 {
			t.Errorf("%.60q: no %s in %v", tc.request, name, after)
		}
		g.await(t, fmt.Sprintf(`"surface":%q,"key":%q`, tc.kind, tc.key), 1)
	}
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || strings.Contains(string(text), spoolSecret) {
		t.Errorf("a key is in the metrics: %v", err)
	}
}
