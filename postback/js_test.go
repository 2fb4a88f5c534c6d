package postback

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

const jsPath = "/js/v3/event/db/tbl"

func jsRequest(method, query string) *http.Request {
	return &http.Request{Method: method, URL: &url.URL{Path: jsPath, RawQuery: query}, Header: http.Header{}}
}

// jsCall is a call with this query.
func jsCall(query string) *Call { return &Call{Kind: JS, js: readJSQuery(query)} }

func TestReadJSCall(t *testing.T) {
	all, js, own := AllSurfaces, SurfacesOf([]string{"js"}), SurfacesOf([]string{"postback", "mobile"})
	for _, tc := range []struct {
		name, method, query string
		served              Surfaces
		kind                Kind
		foreign             bool
		code                string
	}{
		{name: "J1", method: "GET", query: "api_key=1/a&modified=1&data=e30%3D&callback=f", served: all, kind: JSONP},
		{name: "J1 where it alone is served", method: "GET", query: "data=e30%3D", served: js, kind: JSONP},
		{name: "J1, an encoded name", method: "GET", query: "d%61ta=e30%3D", served: all, kind: JSONP},
		{name: "GET without data", method: "GET", query: "api_key=1/a&data=&callback=f", served: all, kind: JS},
		{name: "J2", method: "POST", query: "data=e30%3D", served: all, kind: JS},
		{name: "J4", method: "POST", query: "modified=1", served: all, kind: JS},
		{name: "no pixel", method: "POST", query: "td_format=pixel", served: all, kind: JS},
		{name: "preflight", method: "OPTIONS", served: all, kind: Other},
		{name: "another method", method: "PUT", served: all, kind: Other, code: "method_not_allowed"},
		{name: "switched off", method: "GET", query: "data=e30%3D", served: own, kind: Get, foreign: true, code: "not_found"},
		{name: "preflight, switched off", method: "OPTIONS", served: own, kind: Other, foreign: true, code: "not_found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, refused := ReadCall(jsRequest(tc.method, tc.query), tc.served)
			if c.Kind != tc.kind || c.Foreign != tc.foreign || !tc.foreign && c.Destination != (Destination{"db", "tbl"}) {
				t.Errorf("got %v, foreign %v, %v", c.Kind, c.Foreign, c.Destination)
			}
			if (refused != nil) != (tc.code != "") || refused != nil && refused.Code != tc.code {
				t.Errorf("refused with %v", refused)
			}
		})
	}
	post := &http.Request{Method: "POST", URL: &url.URL{Path: "/postback/v3/event/db/tbl"}}
	if c, refused := ReadCall(post, js); refused != SurfaceOff || !c.Foreign || c.Database != "" {
		t.Errorf("Postback, switched off: %+v, %v", c, refused)
	}
	if c, refused := ReadCall(post, own); refused != nil || c.Kind != Post {
		t.Errorf("Postback: %+v, %v", c, refused)
	}
}

func TestJSKey(t *testing.T) {
	header := func(fields ...string) http.Header {
		h := http.Header{}
		for _, field := range fields {
			name, value, _ := strings.Cut(field, ": ")
			h.Add(name, value)
		}
		return h
	}
	const key, other = "1234/abcd", "5/ef"
	for _, tc := range []struct {
		name, query string
		header      http.Header
		want        Credentials
		code, says  string
	}{
		{name: "J1", query: "api_key=1234%2Fabcd&data=e30%3D", want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "a raw slash", query: "api_key=" + key, want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "an encoded name", query: "%61pi_key=" + key, want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "the first that is not empty", query: "api_key=&api_key=" + key + "&api_key=" + other, want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "a fragment", query: "api_key=" + key + "%23top", want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "J3 and J4", header: header("X-TD-WRITE-KEY: " + key), want: Credentials{WriteKey: key, Source: KeyHeader}},
		{name: "TD1 alone", header: header("Authorization: td1 " + key), want: Credentials{Authorization: "TD1 " + key, Source: KeyTD1}},

		{name: "the header before the rest", query: "api_key=" + other + "&td_write_key=" + other, header: header("X-TD-Write-Key: "+key, "Authorization: TD1 "+other), want: Credentials{WriteKey: key, Source: KeyHeader}},
		{name: "the header before TD1", header: header("X-TD-Write-Key: "+key, "Authorization: TD1 "+other), want: Credentials{WriteKey: key, Source: KeyHeader}},
		{name: "td_write_key before api_key", query: "api_key=" + other + "&td_write_key=" + key, want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "an empty td_write_key", query: "td_write_key=&api_key=" + key, want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "api_key before TD1", query: "api_key=" + key, header: header("Authorization: TD1 " + other), want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "an empty header", query: "api_key=" + key, header: header("X-TD-Write-Key: "), want: Credentials{WriteKey: key, Source: KeyParam}},
		{name: "a bad parameter beside a header", query: "api_key=%zz", header: header("X-TD-Write-Key: " + key), want: Credentials{WriteKey: key, Source: KeyHeader}},

		{name: "none", query: "data=e30%3D", code: "missing_write_key"},
		{name: "Basic", header: header("Authorization: Basic eDp5"), code: "missing_write_key"},
		{name: "a bad escape", query: "api_key=1234/%zz", want: Credentials{Source: KeyParam}, code: "invalid_write_key", says: "percent-escape"},
		{name: "a bad escape in td_write_key", query: "td_write_key=%zz&api_key=" + key, want: Credentials{Source: KeyParam}, code: "invalid_write_key", says: "percent-escape"},
		{name: "a comma", query: "api_key=1234/a,b", want: Credentials{Source: KeyParam}, code: "invalid_write_key", says: "comma"},
		{name: "a line break", query: "api_key=1234/a%0d%0aX:b", want: Credentials{Source: KeyParam}, code: "invalid_write_key", says: "visible ASCII"},
		{name: "a bad header before a good parameter", query: "api_key=" + key, header: header("X-TD-Write-Key: 1234/"), want: Credentials{Source: KeyHeader}, code: "invalid_write_key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Call{Kind: JSONP, Query: "unset", js: readJSQuery(tc.query)}
			refused := c.ReadKey(tc.query, tc.header)
			if c.Credentials != tc.want {
				t.Errorf("got %+v, want %+v", c.Credentials, tc.want)
			}
			if tc.code == "" && (refused != nil || c.Query != "") {
				t.Errorf("refused with %v, query %q", refused, c.Query)
			}
			if tc.code != "" && (refused == nil || refused.Code != tc.code || !strings.Contains(refused.Message, tc.says) || strings.Contains(refused.Message, "abcd")) {
				t.Errorf("refused with %v", refused)
			}
		})
	}
	// On Postback it is a parameter like others.
	c := Call{Kind: Post}
	if refused := c.ReadKey("api_key="+key, http.Header{}); refused != MissingKey {
		t.Errorf("Postback: %v", refused)
	}
}

func TestCallback(t *testing.T) {
	for query, want := range map[string]string{
		"":                                "",
		"callback":                        "",
		"callback=":                       "",
		"callback=TreasureJSONPCallback0": "TreasureJSONPCallback0",
		"callback=TreasureJSONPCallback1767225600000aa": "TreasureJSONPCallback1767225600000aa",
		"callback=TDIM.callback.tij17.td_callback":      "TDIM.callback.tij17.td_callback",
		"callback=$_%24.a1":                             "$_$.a1",
		"callback=&callback=f":                          "f",
		"callback=" + strings.Repeat("a", 128):          strings.Repeat("a", 128),
		"callback=" + strings.Repeat("a", 129):          "refused",
		"callback=f()":                                  "refused",
		"callback=f%28":                                 "refused",
		"callback=f%3Balert(1)":                         "refused",
		"callback=a+b":                                  "refused",
		"callback=a%0Ab":                                "refused",
		"callback=1a":                                   "refused",
		"callback=a.":                                   "refused",
		"callback=.a":                                   "refused",
		"callback=a..b":                                 "refused",
		"callback=a.1":                                  "refused",
		"callback=a[0]":                                 "refused",
		"callback=%zz":                                  "refused",
		"callback=%C3%A9":                               "refused",
		"callback=%3C/script%3E":                        "refused",
		"callback=a%E2%80%A8":                           "refused", // a line's end in JavaScript
		"callback=" + url.QueryEscape("alert(document)//"): "refused",
	} {
		got, refused := jsCall(query).Callback()
		if want == "refused" {
			if refused != BadCallback || got != "" {
				t.Errorf("%q: got %q, %v", query, got, refused)
			}
		} else if got != want || refused != nil {
			t.Errorf("%q: got %q, %v", query, got, refused)
		}
	}
}

func TestAppendData(t *testing.T) {
	for _, tc := range []struct {
		name, data, want string
		refused          *Refusal
	}{
		{name: "as SDKs send it", data: "eyJhIjoifn5%2BPz8%2FIn0%3D", want: `{"a":"~~~???"}`},
		{name: "raw", data: "eyJhIjoifn5+Pz8/In0=", want: `{"a":"~~~???"}`},
		{name: "a space for a plus", data: "eyJhIjoifn5%20Pz8/In0=", want: `{"a":"~~~???"}`},
		{name: "the URL alphabet", data: "eyJhIjoifn5-Pz8_In0", want: `{"a":"~~~???"}`},
		{name: "no padding", data: "eyJhIjoifn5%2BPz8%2FIn0", want: `{"a":"~~~???"}`},
		{name: "two of padding", data: "eyJhIjoxMX0%3D%3D", want: `{"a":11}`},
		{name: "lines", data: "eyJh%0D%0AIjox%0AfQ%3D%3D%0A", want: `{"a":1}`},
		{name: "bits behind the end", data: "eyJhIjoxfR", want: `{"a":1}`},
		{name: "no data", data: "", refused: NoRecord},
		{name: "JSON itself", data: "%7B%22a%22%3A1%7D", refused: BadData},
		{name: "encoded twice", data: "e30%253D", refused: BadData},
		{name: "one digit more", data: "eyJhIjoxfQeyJ", refused: BadData},
		{name: "padding inside", data: "e30%3De30%3D", refused: BadData},
		{name: "a bad escape", data: "e30%zz", refused: BadData},
		{name: "no ASCII", data: "e30%C3%A9", refused: BadData},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, refused := jsCall("data="+tc.data).AppendData([]byte("before"), 100)
			if refused != tc.refused || refused == nil && string(got) != "before"+tc.want {
				t.Errorf("got %q, %v", got, refused)
			}
		})
	}
	for size, code := range map[int]string{99: "", 100: "", 101: "payload_too_large", 10_000: "payload_too_large"} {
		c := jsCall("data=" + url.QueryEscape(base64.StdEncoding.EncodeToString(make([]byte, size))))
		got, refused := c.AppendData(nil, 100)
		if refused == nil && (len(got) != size || c.DataSize() < size || c.DataSize() > 2*size) || (refused != nil) != (code != "") || refused != nil && refused.Code != code {
			t.Errorf("%d bytes: got %d of %d, %v", size, len(got), c.DataSize(), refused)
		}
		if len(got) > 103 {
			t.Errorf("%d bytes: it went on to %d", size, len(got))
		}
	}
}

func TestAppendMended(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"UTF-8", "aé日😀", "aé日😀"},
		{"a pair", "\xed\xa0\xbd\xed\xb8\x80", "😀"},
		{"a pair between others", "é\xed\xa0\xbd\xed\xb8\x80日", "é😀日"},
		{"two pairs", "\xed\xa0\xbd\xed\xb8\x80\xed\xa0\xbd\xed\xb8\x81", "😀😁"},
		{"the first and the last pair", "\xed\xa0\x80\xed\xb0\x80\xed\xaf\xbf\xed\xbf\xbf", "\U00010000\U0010ffff"},
		{"a high one alone", "a\xed\xa0\xbdb", "a\ufffdb"},
		{"a low one alone", "a\xed\xb8\x80b", "a\ufffdb"},
		{"a pair the wrong way round", "\xed\xb8\x80\xed\xa0\xbd", "\ufffd\ufffd"},
		{"two high ones and a low one", "\xed\xa0\xbd\xed\xa0\xbd\xed\xb8\x80", "\ufffd😀"},
		{"a high one at the end", "\xed\xa0\xbd", "\ufffd"},
		{"a high one and half of a low one", "\xed\xa0\xbd\xed\xb8", "\ufffd\ufffd\ufffd"},
		{"half of a high one", "\xed\xa0", "\ufffd\ufffd"},
		{"just below the surrogates", "\xed\x9f\xbf", "\ud7ff"},
		{"Latin-1", "caf\xe9", "caf\ufffd"},
		{"too long a form", "\xc0\xaf", "\ufffd\ufffd"},
		{"U+FFFD itself", "\ufffd", "\ufffd"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(AppendMended([]byte("x"), []byte(tc.text))); got != "x"+tc.want {
				t.Errorf("got %q", got)
			}
			if got := MendedSize([]byte(tc.text)); got != len(tc.want) {
				t.Errorf("size %d, want %d", got, len(tc.want))
			}
		})
	}
}

var (
	jsNow  = time.Date(2026, time.December, 1, 12, 0, 0, 0, time.UTC)
	jsTime = strconv.FormatInt(jsNow.Unix()-60, 10)
)

func TestFiller(t *testing.T) {
	const agent = `"td_browser":"td_browser","td_browser_version":"td_browser_version","td_os":"td_os","td_os_version":"td_os_version"`
	from := Caller{IP: "192.0.2.7", UserAgent: "agent", GlobalID: `g"7`}
	for _, tc := range []struct {
		name, record, time, want string // nothing changes, if want is empty
		from                     *Caller
	}{
		{name: "nothing to fill", record: `{"a":1}`},
		{name: "no member", record: ` { } `},
		{name: "td_ip", record: `{"td_ip":"td_ip"}`, want: `{"td_ip":"192.0.2.7"}`},
		{name: "td_ip among others", record: `{"a" : 1 , "td_ip" : "td_ip" , "b":2}`, want: `{"a" : 1 , "td_ip" :"192.0.2.7", "b":2}`},
		{name: "td_ip with another value", record: `{"td_ip":"10.0.0.1","td_global_id":null,"td_os":"td_browser"}`},
		{name: "td_ip without an address", record: `{"td_ip":"td_ip"}`, want: `{"td_ip":""}`, from: &Caller{}},
		{name: "the global id", record: `{"td_global_id":"td_global_id","a":1}`, want: `{"td_global_id":"g\"7","a":1}`},
		{name: "the global id without a cookie", record: `{"td_global_id":"td_global_id","a":1}`, want: `{"a":1}`, from: &Caller{}},
		{name: "from the User-Agent", record: `{` + agent + `}`, want: `{}`},
		{name: "the same, first", record: `{` + agent + `,"a":1}`, want: `{"a":1}`},
		{name: "the same, last", record: `{"a":1,` + agent + `}`, want: `{"a":1}`},
		{name: "the same, between", record: `{"a":1,"td_os":"td_os","b":2}`, want: `{"a":1,"b":2}`},
		{name: "the same, with white space", record: " {\n \"td_os\" : \"td_os\" ,\n \"a\" : 1\n} ", want: " {\n \"a\" : 1\n} "},
		{name: "in an order of its own", record: `{"td_os":"td_os","a":1,"td_browser":"td_browser","td_ip":"td_ip","td_os_version":"td_os_version"}`, want: `{"a":1,"td_ip":"192.0.2.7"}`},
		{name: "one that comes twice", record: `{"td_os":"td_os","td_os":"Linux","td_ip":"td_ip","td_ip":"td_ip"}`, want: `{"td_os":"Linux","td_ip":"192.0.2.7","td_ip":"192.0.2.7"}`},
		{name: "escaped", record: `{"td\u005fip":"\u0074d_ip","\u0074d_os":"td_o\u0073"}`, want: `{"td\u005fip":"192.0.2.7"}`},
		{name: "not inside", record: `{"a":{"td_ip":"td_ip"},"b":["td_os"],"td_user_agent":"td_user_agent","TD_IP":"td_ip"}`},
		{name: "td_ua is a column", record: `{"td_ua":"td_ua"}`},
		{name: "values that look like it", record: `{"a":"\"td_ip\":\"td_ip\"","td_ip":["td_ip"],"td_os":"td_os "}`},

		{name: "a time", record: `{"a":1}`, time: jsTime, want: `{"a":1,"td_record_time":` + jsTime + `}`},
		{name: "a time for nothing else", record: `{}`, time: jsTime, want: `{"td_record_time":` + jsTime + `}`},
		{name: "a time, and all others go", record: `{ "td_os":"td_os" }`, time: jsTime, want: `{"td_record_time":` + jsTime + `}`},
		{name: "a time, and the last one goes", record: `{"a":1,"td_os":"td_os"}`, time: jsTime, want: `{"a":1,"td_record_time":` + jsTime + `}`},
		{name: "the record's own time stays", record: `{"time":` + jsTime + `}`, time: jsTime, want: `{"time":` + jsTime + `,"td_record_time":` + jsTime + `}`},
		{name: "a td_record_time of its own", record: `{"td_record_time":1}`, time: jsTime},
		{name: "in another case", record: `{"Td_Record_T\u0069me":1}`, time: jsTime},
		{name: "milliseconds", record: `{"a":1}`, time: jsTime + "000"},
		{name: "a fraction", record: `{"a":1}`, time: jsTime + ".5"},
		{name: "a Date", record: `{"a":1}`, time: "Tue%20Dec%2001%202026%2012%3A00%3A00%20GMT%2B0000"},
		{name: "a sign", record: `{"a":1}`, time: "%2B" + jsTime},
		{name: "a blank", record: `{"a":1}`, time: "+" + jsTime},
		{name: "JSON", record: `{"a":1}`, time: "1%2C%22b%22%3A2"},
		{name: "8 days ago", record: `{"a":1}`, time: strconv.FormatInt(jsNow.AddDate(0, 0, -8).Unix(), 10)},
		{name: "6 days ago", record: `{}`, time: strconv.FormatInt(jsNow.AddDate(0, 0, -6).Unix(), 10), want: `{"td_record_time":` + strconv.FormatInt(jsNow.AddDate(0, 0, -6).Unix(), 10) + `}`},
		{name: "in 4 days", record: `{"a":1}`, time: strconv.FormatInt(jsNow.AddDate(0, 0, 4).Unix(), 10)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.from == nil {
				tc.from = &from
			}
			f, refused := jsCall("time="+tc.time).NewFiller([]byte(tc.record), *tc.from, jsNow, MaxBody)
			if refused != nil {
				t.Fatal(refused)
			}
			if f.Changes() != (tc.want != "") {
				t.Errorf("changes: %v", f.Changes())
			}
			want := tc.want
			if want == "" {
				want = tc.record
			}
			if got := string(f.Append(nil)); got != want || f.Size() != len(want) {
				t.Errorf("got %s of %d bytes, want %s", got, f.Size(), want)
			}
		})
	}
}

func TestFillerRefuses(t *testing.T) {
	for record, want := range map[string][2]*Refusal{ // of a body, and of data
		`[]`: {NoObject, BadData}, `"{}"`: {NoObject, BadData}, ``: {NoObject, BadData}, `{}{}`: {NoObject, BadData}, `{"a":}`: {NoObject, BadData}, `null`: {NoObject, BadData}, `{}`: {},
	} {
		for i, inBody := range []bool{true, false} {
			c := jsCall("data=x")
			c.InBody = inBody
			if _, refused := c.NewFiller([]byte(record), Caller{}, jsNow, MaxBody); refused != want[i] {
				t.Errorf("%q, in a body %v: %v", record, inBody, refused)
			}
		}
	}
	// The limit holds for the result; a time that has no room is left out.
	for _, tc := range []struct {
		record, query string
		limit         int
		want          string
	}{
		{`{"td_ip":"td_ip"}`, "", len(`{"td_ip":"192.0.2.7"}`), `{"td_ip":"192.0.2.7"}`},
		{`{"td_ip":"td_ip"}`, "", len(`{"td_ip":"192.0.2.7"}`) - 1, ""},
		{`{"td_os":"td_os","a":1}`, "", len(`{"a":1}`), `{"a":1}`},
		{`{"a":1}`, "time=" + jsTime, len(`{"a":1,"td_record_time":1234567890}`), `{"a":1,"td_record_time":` + jsTime + `}`},
		{`{"a":1}`, "time=" + jsTime, len(`{"a":1,"td_record_time":1234567890}`) - 1, `{"a":1}`},
	} {
		f, refused := jsCall(tc.query).NewFiller([]byte(tc.record), Caller{IP: "192.0.2.7"}, jsNow, tc.limit)
		if tc.want == "" {
			if refused == nil || refused.Code != "payload_too_large" {
				t.Errorf("%s: %v", tc.record, refused)
			}
		} else if refused != nil || string(f.Append(nil)) != tc.want || f.Changes() != (tc.want != tc.record) {
			t.Errorf("%s: got %s, %v, changes %v", tc.record, f.Append(nil), refused, f.Changes())
		}
	}
}

// TestKeptJS: a record from data is the caller's own JSON. Its times are as those of
// a body, and it may go in a batch.
func TestKeptJS(t *testing.T) {
	for record, want := range map[string]struct {
		body  string
		timed RecordTime
	}{
		`{"a":1}`:                                 {`{"a":1,"td_record_time":` + strconv.FormatInt(jsNow.Unix(), 10) + `}`, TimeAdded},
		`{"time":` + jsTime + `}`:                 {`{"time":` + jsTime + `}`, TimeOwn},
		`{"time":"now"}`:                          {`{"time":"now"}`, TimeUnusable},
		`{"td_record_time":"now"}`:                {`{"td_record_time":"now"}`, TimeUnusable},
		`{"td_record_time":` + jsTime + `,"a":1}`: {`{"td_record_time":` + jsTime + `,"a":1}`, TimeOwn},
	} {
		q := Request{
			Host: "v2.example", Destination: Destination{"db", "tbl"}, Credentials: Credentials{WriteKey: "1234/abcd"},
			Header: http.Header{"If-None-Match": {"x"}, "Content-Encoding": {"gzip"}, "Content-Md5": {"x"}},
		}
		q.UseData([]byte(record))
		data, timed := AppendKept(nil, &q, jsNow)
		head, body, _ := bytes.Cut(data, []byte("\r\n\r\n"))
		if string(body) != want.body || timed != want.timed {
			t.Errorf("%s: kept %s, %s", record, body, timed)
		}
		if text := string(head); !strings.HasPrefix(text, "POST /postback/v3/event/db/tbl HTTP/1.1\r\n") || strings.Contains(text, "If-None-Match") || strings.Contains(text, "Content-Encoding") || strings.Contains(text, "Content-Md5") {
			t.Errorf("%s: head %q", record, text)
		}
		if _, _, ok := ToBatch(data, jsNow, [16]byte{}); ok != (timed != TimeUnusable) {
			t.Errorf("%s: goes in a batch: %v", record, ok)
		}
	}
	q := Request{Header: http.Header{"Content-Digest": {"x"}}, Body: []byte(`{"td_os":"td_os"}`)}
	if !q.mustStay() {
		t.Error("a body with a digest may change")
	}
	q.UseChanged([]byte(`{}`))
	if q.mustStay() || strings.Contains(string(q.AppendHead(nil)), "Content-Digest") {
		t.Error("a digest stays with a body that has changed")
	}
}

// FuzzData encodes what a JavaScript engine has, as the SDKs do: text is UTF-16, and
// each of its units is encoded alone. What the engine meant must arrive.
func FuzzData(f *testing.F) {
	for _, text := range []string{"", "a", "é", "日本", "😀", "a😀b"} {
		units := make([]byte, 0, 16)
		for _, unit := range utf16.Encode([]rune(text)) {
			units = append(units, byte(unit>>8), byte(unit&0xff))
		}
		f.Add(units, uint8(len(text)&7))
	}
	f.Add([]byte{0xd8, 0x3d, 0xd8, 0x3d, 0xde, 0x00, 0xde, 0x00, 0, 'a'}, uint8(7))
	f.Fuzz(func(t *testing.T, text []byte, form uint8) {
		var units []uint16
		var encoded []byte
		for pair := range slices.Chunk(text, 2) {
			unit := uint16(pair[0])
			if len(pair) == 2 {
				unit = unit<<8 | uint16(pair[1])
			}
			units = append(units, unit)
			encoded = appendUnit(encoded, unit)
		}
		data := base64.StdEncoding.EncodeToString(encoded)
		if form&1 != 0 {
			data = strings.TrimRight(data, "=")
		}
		if form&2 != 0 {
			data = strings.NewReplacer("+", "-", "/", "_").Replace(data)
		}
		if form&4 != 0 {
			data = url.QueryEscape(data)
		}
		decoded, refused := jsCall("data="+data).AppendData(nil, MaxBody)
		if refused != nil && !(refused == NoRecord && len(text) == 0) {
			t.Fatal(data, refused)
		}
		meant := string(utf16.Decode(units)) // a surrogate alone is U+FFFD
		if got := string(AppendMended(nil, decoded)); got != meant {
			t.Errorf("%x of %q: got %q", decoded, meant, got)
		}
		if got := MendedSize(decoded); got != len(meant) {
			t.Errorf("%x: size %d, want %d", decoded, got, len(meant))
		}
	})
}

// appendUnit encodes a unit of UTF-16 as keen-js does.
func appendUnit(dst []byte, unit uint16) []byte {
	switch {
	case unit < 0x80:
		return append(dst, byte(unit))
	case unit < 0x800:
		return append(dst, 0xc0|byte(unit>>6), 0x80|byte(unit&0x3f))
	default:
		return append(dst, 0xe0|byte(unit>>12), 0x80|byte(unit>>6&0x3f), 0x80|byte(unit&0x3f))
	}
}

// FuzzBase64 compares with the decoder of the standard library.
func FuzzBase64(f *testing.F) {
	for _, seed := range []string{"", "e30=", "e30%3D", "e30", "e3", "e", "e30 ", "e30+", "-_", "=", "e=0=", "%", "%0A", "e30%3D%0a", "e30%253D", "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		plain := strings.NewReplacer(" ", "+", "-", "+", "_", "/", "\r", "", "\n", "").Replace(decode(text))
		want, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(plain, "="))
		got, ok := appendBase64(nil, text, MaxBody)
		if ok != (err == nil) || ok && !bytes.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q, %v", text, got, ok, want, err)
		}
	})
}

func FuzzMended(f *testing.F) {
	f.Add([]byte("a\xed\xa0\xbd\xed\xb8\x80\xed\xa0\xbd\xc0é\xf0\x9f"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got := AppendMended(nil, text)
		if !utf8.Valid(got) || len(got) != MendedSize(text) {
			t.Errorf("%x: %x, size %d", text, got, MendedSize(text))
		}
		if utf8.Valid(text) && !bytes.Equal(got, text) {
			t.Errorf("%x: valid, and changed to %x", text, got)
		}
		if !bytes.Contains(text, []byte{0xed}) && string(got) != string([]rune(string(text))) {
			t.Errorf("%x: got %q", text, got)
		}
	})
}

func FuzzCallback(f *testing.F) {
	for _, seed := range []string{"f", "a.b", "a..b", "1", "$", "a\n", "%66", "+", "é", "f(", strings.Repeat("a", 129)} {
		f.Add(seed)
	}
	allowed := regexp.MustCompile(`\A[A-Za-z_$][A-Za-z0-9_$]*(\.[A-Za-z_$][A-Za-z0-9_$]*)*\z`)
	f.Fuzz(func(t *testing.T, value string) {
		if strings.Contains(value, "&") {
			return
		}
		name := decode(value)
		got, refused := jsCall("callback=" + value).Callback()
		if want := name == "" || len(name) <= 128 && allowed.MatchString(name); want != (refused == nil) || want && got != name {
			t.Errorf("%q: got %q, %v", value, got, refused)
		}
	})
}

// FuzzFiller: the result is valid JSON, and is the record but for the members that
// are to change.
func FuzzFiller(f *testing.F) {
	for _, record := range []string{
		`{}`, `{ }`, `{"a":1}`, `{"td_ip":"td_ip"}`, `{"td_os":"td_os","a":[{}]}`, ` {"a":1 , "td_os" : "td_os" } `, `{"td_global_id":"td_global_id","td_record_time":1}`,
		`{"t\u0064_ip":"td_ip","td_ip":"td_\u0069p"}`, `{"td_browser":"td_browser","td_browser_version":"td_browser_version","td_os_version":"td_os_version"}`, `{"":"","\"":1}`,
	} {
		f.Add(record, "time="+jsTime, "g")
		f.Add(record, "", "")
	}
	f.Fuzz(func(t *testing.T, record, query, globalID string) {
		if !utf8.ValidString(record) || !utf8.ValidString(globalID) {
			return // it is made so before
		}
		from := Caller{IP: "2001:db8::7", GlobalID: globalID}
		filler, refused := jsCall(query).NewFiller([]byte(record), from, jsNow, MaxBody)
		if isObject := startsObject([]byte(record)) && json.Valid([]byte(record)); (refused == nil) != isObject {
			t.Fatalf("%q: %v", record, refused)
		}
		if refused != nil {
			return
		}
		got := filler.Append(nil)
		if !json.Valid(got) || len(got) != filler.Size() || filler.Changes() == (string(got) == record) {
			t.Errorf("%q: got %q, size %d, changes %v", record, got, filler.Size(), filler.Changes())
		}
		var want []pair
		timed := false
		for _, p := range pairsOf(t, []byte(record)) {
			timed = timed || strings.EqualFold(p.name, "td_record_time")
			var value string
			if json.Unmarshal([]byte(p.value), &value) == nil && p.value[0] == '"' && value == p.name && slices.Contains(placeholders[:], p.name) {
				switch {
				case p.name == "td_ip":
					p.value = `"` + from.IP + `"`
				case p.name == "td_global_id" && globalID != "":
					p.value = quoteOnce(new(string), globalID)
				default:
					continue
				}
			}
			want = append(want, p)
		}
		if seconds := decode(readJSQuery(query).time); !timed && hasOnly(seconds, isDigit) && usableTime([]byte(seconds), jsNow) {
			want = append(want, pair{"td_record_time", seconds})
		}
		if pairs := pairsOf(t, got); !slices.Equal(pairs, want) {
			t.Errorf("%q: got %q, want %q", record, pairs, want)
		}
	})
}

// pair is a member of an object, its value as it stands there.
type pair struct{ name, value string }

// pairsOf reads an object with the decoder of the standard library.
func pairsOf(t *testing.T, object []byte) (pairs []pair) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	if _, err := decoder.Token(); err != nil {
		t.Fatal(err)
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, pair{name.(string), string(value)})
	}
	return pairs
}

func BenchmarkFiller(b *testing.B) {
	record := []byte(`{"event":"view","page_url":"https://shop.example/item?id=7","title":"Caf\u00e9 noir","user":"42","td_ip":"td_ip","td_browser":"td_browser","td_browser_version":"td_browser_version","td_os":"td_os","td_os_version":"td_os_version"}`)
	c, dst := jsCall(""), make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		f, refused := c.NewFiller(record, Caller{IP: "192.0.2.7"}, jsNow, MaxBody)
		if refused != nil {
			b.Fatal(refused)
		}
		dst = f.Append(dst[:0])
	}
}

func TestSaysBatch(t *testing.T) {
	for _, tc := range []struct {
		sent []string
		want bool
	}{
		{nil, false},
		{[]string{"application/json"}, false},
		{[]string{"application/vnd.treasuredata."}, false},
		{[]string{"application/vnd.treasuredata.v1+json"}, true},
		{[]string{"", " Application/VND.treasuredata.v1.js+json ; charset=utf-8"}, true},
		{[]string{"text/plain; a=application/vnd.treasuredata.v1+json"}, false},
	} {
		if got := (&Request{Header: http.Header{"Content-Type": tc.sent}}).SaysBatch(); got != tc.want {
			t.Errorf("%q: %v", tc.sent, got)
		}
	}
}

func BenchmarkAppendData(b *testing.B) {
	record := bytes.Repeat([]byte(`"td_browser":"~~~???",`), 12)
	c, dst := jsCall("data="+url.QueryEscape(base64.StdEncoding.EncodeToString(record))), make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, refused := c.AppendData(dst, MaxBody); refused != nil {
			b.Fatal(refused)
		}
	}
}

// FuzzJSCall reads any query and keys: nothing of the query goes to v2, no refusal
// tells a key, and what is taken is one JSON object in UTF-8.
func FuzzJSCall(f *testing.F) {
	for _, query := range []string{
		"", "api_key=1234/cafe0123456789ab&modified=1&data=e30%3D&time=1&callback=f", "td_write_key=%zz&api_key=cafe0123456789ab", "&&data&data=&data==", "d%61ta=7aC97biA", "api_key=1/a%0D%0AX:b",
	} {
		f.Add(query, "", "")
		f.Add(query, "1234/cafe0123456789ab", "TD1 1234/cafe0123456789ab")
	}
	f.Fuzz(func(t *testing.T, query, header, authorization string) {
		c, refused := ReadCall(jsRequest(http.MethodGet, query), AllSurfaces)
		if refused != nil || !c.IsJS() {
			t.Fatal(refused)
		}
		isPrivate := func(refused *Refusal) bool { return refused == nil || !strings.Contains(refused.Message, "cafe") }
		fields := http.Header{canonicalWriteKeyHeader: {header}, "Authorization": {authorization}}
		if refused := c.ReadKey(query, fields); !isPrivate(refused) || (refused == nil) != (c.Key() != "") || keyProblem(c.Key()) != "" {
			t.Errorf("%q: key %q, %v", query, c.Key(), refused)
		}
		if _, refused := c.Callback(); !isPrivate(refused) {
			t.Error(refused)
		}
		decoded, refused := c.AppendData(nil, MaxBody)
		if refused != nil {
			return
		}
		if len(decoded) > c.DataSize() {
			t.Errorf("%q: %d bytes in a room of %d", query, len(decoded), c.DataSize())
		}
		filler, refused := c.NewFiller(AppendMended(nil, decoded), Caller{IP: "::1"}, jsNow, MaxBody)
		if refused != nil {
			return
		}
		q := Request{Destination: c.Destination, Query: c.Query, Credentials: c.Credentials}
		q.UseData(filler.Append(nil))
		if line, _, _ := strings.Cut(string(q.AppendHead(nil)), "\r\n"); line != "POST /postback/v3/event/db/tbl HTTP/1.1" || q.SurelyRefused() || !utf8.Valid(q.Body) || !json.Valid(q.Body) {
			t.Errorf("%q: %q with %q", query, line, q.Body)
		}
	})
}

// TestFilled: a column is filled in, or left out, if it holds its own name; a time is added.
func TestFilled(t *testing.T) {
	now := time.Date(2026, time.November, 20, 12, 0, 0, 0, time.UTC)
	for record, want := range map[string]bool{
		`{"a":1}`: false, `{"td_ip":"1"}`: false, `{"td_ip":"td_ip"}`: true, `{"td_browser":"td_browser"}`: true, `{"td_global_id":"td_global_id"}`: true,
	} {
		c := Call{js: jsQuery{time: "1795176000"}}
		f, refused := c.NewFiller([]byte(record), Caller{IP: "192.0.2.1"}, now, MaxBody)
		if refused != nil || f.Filled() != want || !f.Changes() {
			t.Errorf("%s: got %v, %v", record, f.Filled(), refused)
		}
	}
}
