package caddymodule

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Each target says in another way what the contract is, and compares. The
// query's parameters, the head of a request and the record have their targets
// beside their tests.

// FuzzPath compares with the contract as one expression.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"/postback/v3/event/db/tbl", "//postback///v3/event/db//tbl/", "/postback/v3/event/db", "/postback/v3/event/db/tbl/x", "/postback", "/postback/",
		"/postback/v3/event/d-b/t", "/postback/v3/event/db/tbl//", "/postback/v3/event/db/\u0661", "/postback/v3/event/db/t\n", "", "postback/v3/event/db/tbl",
	} {
		f.Add(seed)
	}
	event := regexp.MustCompile(`^/+postback/+v3/+event/+([A-Za-z0-9_]+)/+([A-Za-z0-9_]+)/*$`)
	inside := regexp.MustCompile(`^/+postback/`)
	f.Fuzz(func(t *testing.T, path string) {
		got, refused := parsePath(path)
		names := event.FindStringSubmatch(path)
		switch {
		case names != nil:
			if refused != nil || got != (destination{names[1], names[2]}) {
				t.Fatalf("%q: got %+v, %v", path, got, refused)
			}
			if again, refused := parsePath((&v2Request{destination: got}).path()); refused != nil || again != got {
				t.Errorf("%q: its canonical form leads to %+v, %v", path, again, refused)
			}
		case refused == nil:
			t.Errorf("%q: taken as %+v", path, got)
		case refused.code != "invalid_path" && inside.MatchString(path), refused.code != "not_found" && !inside.MatchString(path):
			t.Errorf("%q: refused with %s", path, refused.code)
		case got != (destination{}):
			t.Errorf("%q: refused, but it leads to %+v", path, got)
		}
	})
}

// FuzzKey compares with README's table.
func FuzzKey(f *testing.F) {
	f.Add("1234%2Fabcd", "", "", "Basic x", "")
	f.Add("", "", "5/e", "td1\t 1/a", "TD1 2/b")
	f.Add("%zz", " 1/a ", "", "TD1 x y", "")
	f.Add("a+b", "", "", "TD1", "TD1 \v")
	f.Add("%00", "\t", "1/a\x7f", "TD12 x", "TD1 1/a")
	f.Fuzz(func(t *testing.T, value, header1, header2, auth1, auth2 string) {
		trim := func(s string) string { return strings.Trim(s, " \t\r\n") }
		param, err := url.QueryUnescape(value)
		badParam := err != nil
		param = trim(param)
		header := trim(header1)
		if header == "" {
			header = trim(header2)
		}
		td1 := ""
		for _, auth := range []string{auth2, auth1} { // the first one stays
			scheme, key, _ := strings.Cut(strings.ReplaceAll(trim(auth), "\t", " "), " ")
			if strings.ToUpper(scheme) == "TD1" && trim(key) != "" {
				td1 = trim(trim(auth)[len("TD1"):])
			}
		}
		var want credentials
		var used []string
		switch hasParam := param != "" || badParam; {
		case header != "" && (hasParam || td1 == ""):
			want, used = credentials{writeKey: header, source: keyHeader}, []string{header}
		case header != "":
			want, used = credentials{writeKey: header, authorization: "TD1 " + td1, source: keyTD1}, []string{header, td1}
		case hasParam:
			want, used = credentials{writeKey: param, source: keyParam}, []string{param}
		case td1 != "":
			want, used = credentials{authorization: "TD1 " + td1, source: keyTD1}, []string{td1}
		}
		code := ""
		switch invisible := func(r rune) bool { return r <= ' ' || r > '~' }; {
		case used == nil:
			code = "missing_write_key"
		case header == "" && badParam,
			slices.ContainsFunc(used, func(key string) bool { return len(key) > 1024 || strings.ContainsFunc(key, invisible) }):
			code = "invalid_write_key"
		}
		got, refused := findKey(decodeKey(value), []string{header1, header2}, []string{auth1, auth2})
		switch {
		case code == "" && (refused != nil || got != want):
			t.Errorf("got %+v, %v, want %+v", got, refused, want)
		case code != "" && (refused == nil || refused.code != code || got != (credentials{source: want.source})):
			t.Errorf("got %+v, %v, want %s", got, refused, code)
		}
	})
}

// FuzzContentType also takes the body in two parts, as a long one is kept.
func FuzzContentType(f *testing.F) {
	f.Add("", " \t\r\n{", uint16(2))
	f.Add("Text/Plain ;charset=x", "{}", uint16(0))
	f.Add("application/x-www-form-urlencoded", "a={", uint16(1))
	f.Add(";", "\ufeff{}", uint16(1))
	f.Add("application/json;", "{}", uint16(1))
	f.Fuzz(func(t *testing.T, sent, body string, cut uint16) {
		want, changed := sent, false
		switch strings.Trim(strings.ToLower(strings.SplitN(sent, ";", 2)[0]), " \t") {
		case "", "text/plain", "application/x-www-form-urlencoded":
			if strings.HasPrefix(strings.TrimLeft(body, " \t\r\n"), "{") {
				want, changed = "application/json", true
			}
		}
		if got, replaced := contentType([]string{sent}, []byte(body)); got != want || replaced != changed {
			t.Errorf("%q around %q: got %q, %v, want %q, %v", sent, body, got, replaced, want, changed)
		}
		at := min(int(cut), len(body))
		q := v2Request{header: http.Header{"Content-Type": {sent}}, body: []byte(body[:at]), more: [][]byte{nil, []byte(body[at:])}}
		if q.setContentType(); (q.contentType != "") != changed {
			t.Errorf("%q around %q and %q: got %q", sent, body[:at], body[at:], q.contentType)
		}
	})
}

// FuzzQuery checks that a query means the same behind the escapes that
// HTTP/1.1 needs.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"a=1", "a b=%\x01", "%4\x7f1", "\xff\x00&=", "% 41"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got := string(appendQuery(nil, query))
		if strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			t.Errorf("%q: %q would end the request line", query, got)
		}
		if decode(got) != decode(query) || strings.Count(got, "&") != strings.Count(query, "&") {
			t.Errorf("%q became %q", query, got)
		}
		if !strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r == 0x7f }) && got != query {
			t.Errorf("%q had nothing to escape and became %q", query, got)
		}
	})
}

// FuzzRecordLimit checks what is known of a record before it is made, and that
// a limit changes nothing but whether it is taken.
func FuzzRecordLimit(f *testing.F) {
	f.Add("a=1&td_format=pixel", uint16(3), true)
	f.Add("td%5fformat=%70ixel&a=%01%01%01", uint16(20), false)
	f.Add("td_global_id=td_global_id&td_redirect=x", uint16(2), false)
	f.Add(strings.Repeat("&", 40)+"a&a&b=%22", uint16(9), true)
	f.Fuzz(func(t *testing.T, query string, limit uint16, cookie bool) {
		from := caller{ip: "192.0.2.1", userAgent: "\"ua\xff"}
		if cookie {
			from.globalID = "gid"
		}
		whole := appendRecord(nil, query, from, 1<<30)
		if whole.tooLarge || !json.Valid(whole.body) {
			t.Fatalf("%q: %q", query, whole.body)
		}
		if wantsPixel(query) != whole.pixel {
			t.Errorf("%q: wants a pixel: %v, but the record says %v", query, wantsPixel(query), whole.pixel)
		}
		if hasColumn(query, from) != (whole.columns > 0) || whole.columns == 0 && string(whole.body) != "{}" {
			t.Errorf("%q: has a column: %v, but the record is %q", query, hasColumn(query, from), whole.body)
		}
		limited := appendRecord([]byte("before"), query, from, int(limit))
		if limited.tooLarge != (len(whole.body) > int(limit)) {
			t.Errorf("%q: %d bytes, limit %d: too large: %v", query, len(whole.body), limit, limited.tooLarge)
		}
		if !limited.tooLarge && string(limited.body) != "before"+string(whole.body) || !bytes.HasPrefix(limited.body, []byte("before")) {
			t.Errorf("%q: %q behind what was there, %q alone", query, limited.body, whole.body)
		}
	})
}

// FuzzRecordTime compares with encoding/json, and takes out again what was
// added.
func FuzzRecordTime(f *testing.F) {
	for _, seed := range []string{
		`{"a":1}`, " { } \n", `{"t\u0069me":null}`, `{"a":{"time":1},"b":["td_record_time"]}`, `{"td\u005frecord\u005Ftime":1,"td_record_time":2}`, `{"a":"\\","a\"":1e999}`,
		`{"a":1,}`, `{}{}`, `[{"time":1}]`, "\ufeff{}", "{\"\xff\":\"\\ud800\"}", "", "{", `{"a":"\`, "null", "\x81\xa1a\x01", "\x1f\x8b\x08",
	} {
		f.Add([]byte(seed), int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, body []byte, arrival int64) {
		want := timeNoObject
		var members map[string]json.RawMessage
		if json.Unmarshal(body, &members) == nil && members != nil {
			want = timeAdded
			if _, names := decodeObject(t, body); slices.Contains(names, "td_record_time") || slices.Contains(names, "time") {
				want = timeOwn
			}
		}
		got, result := appendRecordTime([]byte("before"), body, arrival)
		if result != want {
			t.Errorf("%q: %v, want %v", body, result, want)
		}
		got, ok := bytes.CutPrefix(got, []byte("before"))
		if !ok || json.Valid(got) != json.Valid(body) {
			t.Errorf("%q became %q", body, got)
		}
		if want == timeAdded {
			added := `"td_record_time":` + strconv.FormatInt(arrival, 10)
			if len(members) > 0 {
				added = "," + added
			}
			at := bytes.LastIndex(got, []byte(added))
			if _, names := decodeObject(t, got); at < 0 || names[len(names)-1] != "td_record_time" {
				t.Fatalf("%q became %q", body, got)
			}
			got = slices.Delete(got, at, at+len(added))
		}
		if !bytes.Equal(got, body) {
			t.Errorf("%q was %q", got, body)
		}
	})
}

// FuzzRedirect checks where a browser is led, by what stands between `//` and
// the end of the authority, and that an honest target leads where it says.
func FuzzRedirect(f *testing.F) {
	for _, seed := range []string{
		"https://shop.example/a?b=td_global_id#c", "http://a.sub.example:80", "https://shop.example:443/", "https://shop.example@evil.example/", `https:\\evil.example`,
		"//evil.example", "https:/evil.example", "https://evil.example?.sub.example", "https://x%2f.sub.example/", "HTTPS://SHOP.example/\u00e9\"<>", "https://shop.example\t/", "javascript://shop.example/%0aalert(1)",
		"https://user@shop.example/", "https://.sub.example/", "https://a'b.sub.example/", `https://shop.example/?\evil.example`,
	} {
		f.Add(seed, "gid&\r\n\"")
	}
	hosts := []string{"shop.example", "*.sub.example"}
	location := regexp.MustCompile(`^(?:http://(?:shop\.example|(?:[a-z0-9-]+\.)+sub\.example)(?::80)?|https://(?:shop\.example|(?:[a-z0-9-]+\.)+sub\.example)(?::443)?)(?:[/?#][!#-;=?-~]*)?$`)
	f.Fuzz(func(t *testing.T, value, globalID string) {
		if got, ok := redirectTarget(value, hosts, globalID); ok {
			if !location.MatchString(got) || strings.Contains(got, `\`) {
				t.Errorf("%q leads to %q", value, got)
			}
			_, rest, _ := strings.Cut(value, "//")
			if authority := strings.FieldsFunc(rest+"/", func(r rune) bool { return strings.ContainsRune("/?#", r) }); len(authority) > 0 && strings.Contains(authority[0], "@") {
				t.Errorf("%q has a user name and leads to %q", value, got)
			}
			if len(got) > 3*3*maxRedirect { // each byte escaped, and that escaped once more
				t.Errorf("%q: %d bytes", value, len(got))
			}
			if again, ok := redirectTarget(got, hosts, ""); len(got) <= maxRedirect && !strings.Contains(got, globalIDPlaceholder) && (!ok || again != got) {
				t.Errorf("%q leads to %q, and that to %q, %v", value, got, again, ok)
			}
		} else if got != "" {
			t.Errorf("%q is refused, and leads to %q", value, got)
		}
		text := value[:min(len(value), 500)]
		honest := "https://shop.example/p/" + url.PathEscape(text) + "?q=" + url.QueryEscape(text) + "&id=td_global_id"
		got, ok := redirectTarget(honest, hosts, globalID[:min(len(globalID), 500)])
		u, err := url.Parse(got)
		if !ok || err != nil {
			t.Fatalf("%q: got %q, %v, %v", honest, got, ok, err)
		}
		if !strings.Contains(text, globalIDPlaceholder) && (u.Path != "/p/"+text || u.Query().Get("q") != text || u.Query().Get("id") != globalID[:min(len(globalID), 500)]) {
			t.Errorf("%q leads to %q", honest, got)
		}
	})
}

// FuzzRegion compares with the published hosts: no other name has a region.
func FuzzRegion(f *testing.F) {
	for _, seed := range []string{
		"in.treasuredata.com", "TOKYO.in.treasuredata.com:80", "eu01.in.treasuredata.com.", "ap02.in.treasuredata.com.:443", "in.treasuredata.com:", "in.treasuredata.com..",
		"us01.records.in.treasuredata.com", "xin.treasuredata.com", "in.treasuredata.com:80:80", "in.trea\u017furedata.com", "",
	} {
		f.Add(seed)
	}
	published := map[string]string{
		"in.treasuredata.com": "us01", "tokyo.in.treasuredata.com": "ap01", "eu01.in.treasuredata.com": "eu01", "ap02.in.treasuredata.com": "ap02", "ap03.in.treasuredata.com": "ap03",
	}
	valid := regexp.MustCompile(`^([A-Za-z0-9.]*?)\.?(?::[0-9]*)?$`)
	// A port that is none, and a name in brackets, lead nowhere else: they are
	// taken too.
	taken := regexp.MustCompile(`(?s)^\[?([A-Za-z0-9.]*?)\.?\]?(?::.*)?$`)
	f.Fuzz(func(t *testing.T, host string) {
		region := func(form *regexp.Regexp) string {
			name := form.FindStringSubmatch(host)
			if name == nil {
				return ""
			}
			return published[strings.ToLower(name[1])]
		}
		got, ok := regionOf(host)
		if want := region(valid); want != "" && got != want || ok != (got != "") {
			t.Errorf("%q: got %q, %v, want %q", host, got, ok, want)
		}
		if got != "" && got != region(taken) {
			t.Errorf("%q: got %q", host, got)
		}
	})
}

// FuzzAnswer gives v2's answer as any bytes, and compares with net/http: what
// the caller gets, and where the answer ends on a connection that is used
// again.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\n{\r\n1\r\n}\r\n0\r\nX: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\n\r\n",
		"HTTP/1.0 404 Not Found\r\nset-cookie: a=b\r\nALT-SVC: x\r\n\r\nuntil the end",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200 OK\nX: \x00a\nContent-Length: +2\n\n{}",
		"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		got, left, reusable, err := answerOf(sent)
		if err != nil {
			if got.Code != 200 || got.Body.Len() > 0 || len(got.Header()) > 0 {
				t.Errorf("%v, but the caller has something", err)
			}
			return
		}
		for name, values := range got.Header() {
			switch textproto.CanonicalMIMEHeaderKey(name) {
			case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Set-Cookie", "Alt-Svc", "Strict-Transport-Security":
				t.Errorf("%s: %q went through", name, values)
			}
		}
		if !reusable {
			return // whatever it means, nothing follows on this connection
		}
		if left != 0 {
			t.Errorf("%d bytes are left on a connection that is used again", left)
		}
		status, body, err := finalAnswer(sent)
		if err != nil {
			return // fasthttp takes more than net/http does
		}
		if got.Code != status || got.Body.String() != body {
			t.Errorf("got %d %q, net/http reads %d %q", got.Code, got.Body, status, body)
		}
	})
}

// answerOf passes an answer on to a caller.
func answerOf(sent []byte) (got *httptest.ResponseRecorder, left int, reusable bool, err error) {
	got = httptest.NewRecorder()
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.w, x.r, x.conn, x.timeout = got, httptest.NewRequest(http.MethodPost, "/", nil), stubConn{}, time.Second
	br := bufio.NewReaderSize(bytes.NewReader(sent), answerBuffer)
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { //nolint:errorlint // a panic's value is compared as net/http does
				panic(p)
			}
			reusable = false // the caller's connection is broken off
		}
	}()
	if err := x.readHead(br); err != nil {
		return got, 0, false, err
	}
	reusable, err = x.pass(br)
	rest, _ := io.Copy(io.Discard, br)
	return got, int(rest), reusable, err
}

// finalAnswer reads the same answer with net/http.
func finalAnswer(sent []byte) (status int, body string, err error) {
	br := bufio.NewReader(bytes.NewReader(sent))
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodPost})
		if err != nil {
			return 0, "", err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return 0, "", err
		}
		if resp.StatusCode >= 200 {
			return resp.StatusCode, string(text), nil
		}
	}
}

// FuzzCaddyfile reads any tokens: what is taken is the same in JSON, and no
// option is silently as if it were not set.
func FuzzCaddyfile(f *testing.F) {
	for _, seed := range []string{
		"td_postback us01", "td_postback {\n region auto\n max_body 1KB\n redirect_hosts a.example *.b.example\n}", "td_postback us01 {\n retries 0\n pass_thru\n}",
		"td_postback {\n handoff\n pass_thru\n handoff\n}", "td_postback us01 {\n max_body 0\n}", "td_postback us01 {\n dial_timeout 1d\n tls_ca a b\n upstream \"\"\n}", "td_postback {\n region {\n auto\n}\n}",
		"td_postback us01 {\n max_conns 99999999999999999999\n max_buffered 1e3\n response_timeout 1ns\n global_id _x\n}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := caddyfile.Tokenize([]byte(text), "Caddyfile")
		if err != nil || len(tokens) == 0 {
			return
		}
		h := new(Handler)
		if h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)) != nil {
			return
		}
		asJSON, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(bytes.NewReader(asJSON))
		d.DisallowUnknownFields()
		again := new(Handler)
		if err := d.Decode(again); err != nil || !reflect.DeepEqual(toValidConfig(h), toValidConfig(again)) {
			t.Errorf("%q is %s, and that is %+v, %v", text, asJSON, again, err)
		}
		h.applyDefaults()
		if h.Validate() != nil {
			return
		}
		if h.MaxBody < 1 || h.MaxBody > 1_048_064 || h.MaxBuffered < 1<<20 || h.GlobalID == "" {
			t.Errorf("%q: valid with %+v", text, h)
		}
		if !h.Handoff && (h.DialTimeout <= 0 || h.ResponseTimeout <= 0 || h.MaxConns < 1 || *h.Retries < 0 || *h.Retries > 10 || h.Region == "" && h.Upstream == "") {
			t.Errorf("%q: valid with %+v", text, h)
		}
	})
}

// toValidConfig is a configuration as JSON can say it.
func toValidConfig(h *Handler) Handler {
	c := *h
	for _, s := range []*string{&c.Region, &c.Upstream, &c.GlobalID} {
		*s = strings.ToValidUTF8(*s, "\ufffd")
	}
	return c
}

// FuzzCaddyfileOptions writes options down and reads them back.
func FuzzCaddyfileOptions(f *testing.F) {
	f.Add("us01", "http://x.example:8080", "*.shop.example", int64(1048064), int64(5000), 3, 2)
	f.Add("auto", "x", "", int64(0), int64(1), 1, 0)
	f.Add("a b", "{", "\n", int64(1)<<50+1, int64(1), 1, 0)
	f.Add("x", "#", "\"", int64(1), int64(0), 1, 0)
	f.Add("x", "\\", "é", int64(1), int64(1), 0, 0)
	f.Add("x", "x", "x", int64(1), int64(1), 1, -1)
	f.Fuzz(func(t *testing.T, region, upstream, host string, size, millis int64, conns, retries int) {
		for _, s := range []string{region, upstream, host} {
			if !utf8.ValidString(s) || strings.ContainsAny(s, "`\r\ufeff") || strings.Contains(s, "{$") {
				return // these do not stay as they are inside a quoted token either
			}
		}
		text := "td_postback {\nregion `" + region + "`\nupstream `" + upstream + "`\nredirect_hosts `" + host + "` b\nmax_body " + strconv.FormatInt(size, 10) +
			"\ndial_timeout " + strconv.FormatInt(millis, 10) + "ms\nmax_conns " + strconv.Itoa(conns) + "\nretries " + strconv.Itoa(retries) + "\npass_thru\n}"
		tokens, err := caddyfile.Tokenize([]byte(text), "Caddyfile")
		if err != nil {
			t.Fatal(err)
		}
		got := new(Handler)
		err = got.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens))
		allowed := size > 0 && size <= 1<<50 && millis > 0 && millis <= int64(1<<63-1)/int64(time.Millisecond) && conns > 0 && retries >= 0 && region != "" && upstream != ""
		if (err == nil) != allowed {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil {
			return
		}
		want := &Handler{
			Region: region, Upstream: upstream, RedirectHosts: []string{host, "b"}, MaxBody: size,
			DialTimeout: caddy.Duration(millis * int64(time.Millisecond)), MaxConns: conns, Retries: &retries, PassThru: true,
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	})
}

// FuzzUpstream checks that an upstream is nothing but a place, and that a
// password in a wrong one is not told.
func FuzzUpstream(f *testing.F) {
	for _, seed := range []string{
		"https://v2.example", "http://[::1]:8080/", "https://v2.example:0", "https://a,b", "https://v2.example/x", "https://v2.example?", "http://v2.example:", "https://%zz", "//v2.example", "https://x\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		u, err := parseUpstream(value)
		if err == nil {
			if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.ContainsAny(u.Host, "/?#@ \r\n") {
				t.Errorf("%q: %+v", value, u)
			}
			if again, err := parseUpstream(u.String()); err != nil || *again != *u {
				t.Errorf("%q is %q, and that is %v, %v", value, u, again, err)
			}
		}
		scheme, rest, ok := strings.Cut(value, "://")
		if _, err := parseUpstream(scheme + "://user:PASSWORD@" + rest); ok && (err == nil || strings.Contains(err.Error(), "PASSWORD")) {
			t.Errorf("%q with a password: %v", value, err)
		}
	})
}

// FuzzBody reads a body that comes in any pieces and ends in any way.
func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"a":1}`), uint16(3), 0, uint32(100))
	f.Add(bytes.Repeat([]byte("x"), 70<<10), uint16(4096), 1, uint32(80<<10))
	f.Add(bytes.Repeat([]byte("x"), 5<<10), uint16(1), -1, uint32(5<<10-1))
	f.Fuzz(func(t *testing.T, body []byte, piece uint16, missing int, limit uint32) {
		s := &bodies{maxBody: int64(limit) + 1, maxTotal: 8 << 20}
		cut := missing > 0
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.ContentLength = -1
		if missing >= 0 {
			r.ContentLength = int64(len(body)) + int64(missing%1024)
			cut = missing%1024 > 0
		}
		r.Body = io.NopCloser(&pieces{body: body, size: int(piece) + 1, cut: cut})
		buf, refused := s.read(r)
		switch {
		case max(r.ContentLength, int64(len(body))) > s.maxBody:
			if refused == nil || refused.code != "payload_too_large" {
				t.Errorf("%d bytes of at most %d: %v", len(body), s.maxBody, refused)
			}
		case cut:
			if refused != errBodyCut {
				t.Errorf("a cut body: %v", refused)
			}
		case refused != nil:
			t.Errorf("%d bytes of at most %d: %v", len(body), s.maxBody, refused)
		default:
			if got := slices.Concat(append([][]byte{buf.data}, buf.parts()...)...); !bytes.Equal(got, body) {
				t.Errorf("read %d bytes, or others than the %d sent", len(got), len(body))
			}
			s.release(buf)
		}
		if n := s.inUse.Load(); n != 0 {
			t.Errorf("%d bytes are counted for ever", n)
		}
	})
}

// pieces is a body as it comes from a connection.
type pieces struct {
	body []byte
	size int
	cut  bool
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b, p.body[:min(p.size, len(p.body))])
	p.body = p.body[n:]
	if len(p.body) > 0 {
		return n, nil
	}
	if p.cut {
		return n, io.ErrUnexpectedEOF
	}
	return n, io.EOF
}
