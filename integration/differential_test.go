package integration

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestDifferential sends the same record in two ways, as a legacy caller
// through the gateway and by v2's contract to v2 itself. v2 must not see the
// difference, and the caller must get the same answer.
func TestDifferential(t *testing.T) {
	t.Parallel()
	v2 := startWitness(t)
	g := serve(t, "", "td_postback {\n upstream "+v2.URL+"\n redirect_hosts shop.example\n}")
	for part, cases := range map[string][]odd{"path": oddPaths, "query": oddQueries, "header": oddHeaders, "body": oddBodies, "framing": oddFraming, "record": oddRecords} {
		for _, tc := range cases {
			t.Run(part+"/"+tc.name, func(t *testing.T) {
				answer := raw(t, g.addr, tc.legacy)
				got := v2.latest()
				if tc.answer != "" {
					if saw := shortly(answer); saw != tc.answer {
						t.Errorf("got %q, want %q", saw, tc.answer)
					}
				}
				if tc.v2 == "" {
					if got != nil {
						t.Errorf("refused, but v2 saw %+v", got)
					}
					return
				}
				direct := raw(t, v2.Listener.Addr().String(), tc.v2)
				want := v2.latest()
				if refusedHere(tc.answer) {
					// The gateway may refuse only what v2 would not take either.
					if direct.StatusCode < 400 || got != nil {
						t.Errorf("v2 itself answers %d, behind the gateway it saw %+v", direct.StatusCode, got)
					}
					return
				}
				if tc.answer == "" && (shortly(answer) != shortly(direct) || answer.body != direct.body) {
					t.Errorf("got %q %q, v2 itself answers %q %q", shortly(answer), answer.body, shortly(direct), direct.body)
				}
				compare(t, got, want)
			})
		}
	}
}

// refusedHere reports whether an answer is a refusal that v2 does not see.
func refusedHere(answer string) bool {
	return answer >= "400" && answer != "400 redirect_not_allowed"
}

// shortly says what an answer is: its status, and its code, target or type.
func shortly(answer reply) string {
	what := answer.Header.Get("Content-Type")
	if location := answer.Header.Get("Location"); location != "" {
		what = location
	} else if answer.code() != "" && strings.Contains(answer.body, `"message":"`) {
		what = answer.code()
	}
	return fmt.Sprintf("%d %s", answer.StatusCode, what)
}

// compare compares all that v2 sees, without the headers that tell of the
// gateway.
func compare(t *testing.T, got, want *testimony) {
	t.Helper()
	if got == nil || want == nil {
		t.Fatalf("v2 saw %+v, by itself %+v", got, want)
	}
	if got.line != want.line {
		t.Errorf("v2 saw %q, by itself %q", got.line, want.line)
	}
	for _, name := range []string{"Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
		got.header.Del(name)
	}
	for name := range want.header {
		if !slices.Equal(got.header[name], want.header[name]) {
			t.Errorf("%s: v2 saw %.200q, by itself %.200q", name, got.header[name], want.header[name])
		}
	}
	for name, values := range got.header {
		if want.header[name] == nil {
			t.Errorf("%s: v2 saw %.200q, by itself nothing", name, values)
		}
	}
	if !bytes.Equal(got.body, want.body) {
		t.Errorf("v2 saw %d bytes, %.80q, by itself %d, %.80q", len(got.body), got.body, len(want.body), want.body)
	}
	if (got.record == nil) != (want.record == nil) {
		t.Fatalf("v2 took %v, by itself %v", got.record, want.record)
	}
	if a, b := got.record, want.record; a != nil && (a.Database != b.Database || a.Table != b.Table || a.Via != b.Via || a.Key != b.Key || a.Query != b.Query || !bytes.Equal(a.Body, b.Body)) {
		t.Errorf("v2 took %v, by itself %v", a, b)
	}
}

// odd is an odd but legal request of a legacy caller, and the same record as a
// caller of v2 would send it by hand.
type odd struct {
	name, legacy, v2 string

	// answer is what the caller gets where the documents say that it is not v2's
	// own answer: "403 missing_write_key", "200 image/gif". v2 is empty where
	// nothing could be sent to v2 by hand.
	answer string
}

// v2post is a request by v2's contract: the query, the headers with \r\n each,
// the body. The key is in its header, as it should be.
func v2post(query, headers, body string) string {
	return v2at("db/tbl", query, headers, body)
}

func v2at(names, query, headers, body string) string {
	return fmt.Sprintf("POST /postback/v3/event/%s%s HTTP/1.1\r\nHost: v2.example\r\nX-TD-Write-Key: 1234/abcd\r\n%sContent-Length: %d\r\n\r\n%s", names, query, headers, len(body), body)
}

// v2auth authenticates by the given headers instead.
func v2auth(headers, body string) string {
	return strings.Replace(v2post("", headers, body), "X-TD-Write-Key: 1234/abcd\r\n", "", 1)
}

// chunkedPost is a request in the given chunks, with the trailer.
func chunkedPost(headers, trailer string, chunks ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: in.treasuredata.com\r\n%sTransfer-Encoding: chunked\r\n\r\n", target, headers)
	for _, chunk := range chunks {
		fmt.Fprintf(&b, "%X\r\n%s\r\n", len(chunk), chunk)
	}
	return b.String() + "0\r\n" + trailer + "\r\n"
}

// at is a path of an event with the key.
func at(path string) string { return path + "?td_write_key=1234/abcd" }

const (
	withKey  = "X-TD-Write-Key: 1234/abcd\r\n"
	asForm   = "Content-Type: application/x-www-form-urlencoded\r\n"
	asText   = "Content-Type: text/plain;charset=UTF-8\r\n"
	asPing   = "Content-Type: text/ping\r\n"
	noLength = "POST " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n" + asJSON
)

var oddPaths = []odd{
	{name: "plain", legacy: post(target, asJSON, object), v2: v2post("", asJSON, object)},
	{name: "trailing slash", legacy: post(at(event+"/"), asJSON, object), v2: v2post("", asJSON, object)},
	{name: "three trailing slashes", legacy: post(at(event+"///"), asJSON, object), v2: v2post("", asJSON, object)},
	{name: "runs of slashes", legacy: post(at("//postback///v3//event//db//tbl"), asJSON, object), v2: v2post("", asJSON, object)},
	{name: "encoded letters", legacy: post(at("/postback/v3/event/%64%62/%74bl"), asJSON, object), v2: v2post("", asJSON, object)},
	{name: "encoded underscores", legacy: post(at("/postback/v3/event/my%5Fdb/%5f"), asJSON, object), v2: v2at("my_db/_", "", asJSON, object)},
	{name: "encoded slash", legacy: post(at("/postback/v3/event/db%2Ftbl"), asJSON, object), v2: v2post("", asJSON, object)},
	{name: "encoded prefix", legacy: post(at("/%70ostback/%763/event/db/tbl"), asJSON, object), v2: v2post("", asJSON, object)},
	{name: "absolute form", legacy: post("http://in.treasuredata.com"+target, asJSON, object), v2: v2post("", asJSON, object)},
	{name: "absolute form, other host", legacy: post("https://elsewhere.example:8443"+target, asJSON, object), v2: v2post("", asJSON, object)},
	{name: "digits only", legacy: post(at("/postback/v3/event/1/2"), asJSON, object), v2: v2at("1/2", "", asJSON, object)},
	{name: "upper case", legacy: post(at("/postback/v3/event/DB/Tbl"), asJSON, object), v2: v2at("DB/Tbl", "", asJSON, object)},
	{name: "long names", legacy: post(at("/postback/v3/event/"+strings.Repeat("d", 255)+"/"+strings.Repeat("t", 255)), asJSON, object), v2: v2at(strings.Repeat("d", 255)+"/"+strings.Repeat("t", 255), "", asJSON, object)},
	{name: "names as the prefix", legacy: post(at("/postback/v3/event/event/v3"), asJSON, object), v2: v2at("event/v3", "", asJSON, object)},

	{name: "dot segments", legacy: post(at("/postback/v3/event/x/../db/tbl"), asJSON, object), v2: v2at("x/../db/tbl", "", asJSON, object), answer: "400 invalid_path"},
	{name: "hyphen", legacy: post(at("/postback/v3/event/my-db/tbl"), asJSON, object), v2: v2at("my-db/tbl", "", asJSON, object), answer: "400 invalid_path"},
	{name: "path parameter", legacy: post(at(event+";v=1"), asJSON, object), v2: v2at("db/tbl;v=1", "", asJSON, object), answer: "400 invalid_path"},
	{name: "encoded space behind the table", legacy: post(at(event+"%20"), asJSON, object), v2: v2at("db/tbl%20", "", asJSON, object), answer: "400 invalid_path"},
	{name: "encoded NUL", legacy: post(at(event+"%00"), asJSON, object), v2: v2at("db/tbl%00", "", asJSON, object), answer: "400 invalid_path"},
	{name: "encoded question mark", legacy: post(event+"%3Ftd_write_key=1234/abcd", asJSON, object), v2: v2at("db/tbl%3Fx", "", asJSON, object), answer: "400 invalid_path"},
	{name: "other letters", legacy: post(at("/postback/v3/event/db/t%C3%A4"), asJSON, object), v2: v2at("db/t%C3%A4", "", asJSON, object), answer: "400 invalid_path"},
	{name: "no table", legacy: post(at("/postback/v3/event/db/"), asJSON, object), v2: v2at("db/", "", asJSON, object), answer: "400 invalid_path"},
	{name: "prefix in upper case", legacy: post(at("/Postback/v3/event/db/tbl"), asJSON, object), answer: "404 not_found"},
}

var oddQueries = []odd{
	{name: "key first", legacy: post(target+"&a=1&b=2", asJSON, object), v2: v2post("?a=1&b=2", asJSON, object)},
	{name: "key in the middle", legacy: post(event+"?a=1&td_write_key=1234/abcd&b=2", asJSON, object), v2: v2post("?a=1&b=2", asJSON, object)},
	{name: "key last", legacy: post(event+"?a=1&td_write_key=1234/abcd", asJSON, object), v2: v2post("?a=1", asJSON, object)},
	{name: "encoded name", legacy: post(event+"?%74d_write%5Fke%79=1234/abcd&a=1", asJSON, object), v2: v2post("?a=1", asJSON, object)},
	{name: "encoded value", legacy: post(event+"?td_write_key=%31234%2fabcd", asJSON, object), v2: v2post("", asJSON, object)},
	{name: "value encoded whole", legacy: post(event+"?td_write_key=%31%32%33%34%2F%61%62%63%64", asJSON, object), v2: v2post("", asJSON, object)},
	{name: "equals sign in the key", legacy: post(event+"?td_write_key=1234/ab==", asJSON, object), v2: strings.Replace(v2post("", asJSON, object), "1234/abcd", "1234/ab==", 1)},
	{name: "encoded plus in the key", legacy: post(event+"?td_write_key=1234/a%2Bb", asJSON, object), v2: strings.Replace(v2post("", asJSON, object), "1234/abcd", "1234/a+b", 1)},
	{name: "spaces around the key", legacy: post(event+"?td_write_key=+1234/abcd%20", asJSON, object), v2: v2post("", asJSON, object)},
	{name: "line break behind the key", legacy: post(event+"?td_write_key=1234/abcd%0D%0A", asJSON, object), v2: v2post("", asJSON, object)},
	{name: "empty key first", legacy: post(event+"?td_write_key=&td_write_key=1234/abcd", asJSON, object), v2: v2post("", asJSON, object)},
	{name: "two keys", legacy: post(target+"&a=1&td_write_key=9/second", asJSON, object), v2: v2post("?a=1", asJSON, object)},
	{name: "key without a value, key in the header", legacy: post(event+"?td_write_key&a=1", asJSON+withKey, object), v2: v2post("?a=1", asJSON, object)},
	{name: "empty parameters", legacy: post(event+"?&&a=1&&td_write_key=1234/abcd&&b=2&", asJSON, object), v2: v2post("?&&a=1&&&b=2&", asJSON, object)},
	{name: "question mark only", legacy: post(event+"?", asJSON+withKey, object), v2: v2post("", asJSON, object)},
	{name: "question marks in the query", legacy: post(target+"&a=?b?", asJSON, object), v2: v2post("?a=?b?", asJSON, object)},
	{name: "second question mark before the key", legacy: post(event+"?a=1?b=2&td_write_key=1234/abcd", asJSON, object), v2: v2post("?a=1?b=2", asJSON, object)},
	{name: "fragment", legacy: post(target+"&a=1#top", asJSON, object), v2: v2post("?a=1#top", asJSON, object)},
	{name: "bad escapes", legacy: post(target+"&a=%&b=%z&c=%4", asJSON, object), v2: v2post("?a=%&b=%z&c=%4", asJSON, object)},
	{name: "semicolons", legacy: post(target+"&a=1;b=2&;", asJSON, object), v2: v2post("?a=1;b=2&;", asJSON, object)},
	{name: "lower and upper case escapes", legacy: post(target+"&a=%7e%7E%2f%2F", asJSON, object), v2: v2post("?a=%7e%7E%2f%2F", asJSON, object)},
	{name: "plus and %20", legacy: post(target+"&a=b+c%20d", asJSON, object), v2: v2post("?a=b+c%20d", asJSON, object)},
	{name: "raw UTF-8", legacy: post(target+"&a=日本", asJSON, object), v2: v2post("?a=日本", asJSON, object)},
	{name: "raw Latin-1", legacy: post(target+"&a=\xe4\xff", asJSON, object), v2: v2post("?a=\xe4\xff", asJSON, object)},
	{name: "unwise bytes", legacy: post(target+"&a=\"<>{}|\\^`'[]", asJSON, object), v2: v2post("?a=\"<>{}|\\^`'[]", asJSON, object)},
	{name: "placeholders of Caddy", legacy: post(target+"&a={http.request.uri}&b={env.HOME}", asJSON, object), v2: v2post("?a={http.request.uri}&b={env.HOME}", asJSON, object)},
	{name: "a key in upper case is none", legacy: post(target+"&TD_WRITE_KEY=x", asJSON, object), v2: v2post("?TD_WRITE_KEY=x", asJSON, object)},
	{name: "a key with brackets is none", legacy: post(target+"&td_write_key[]=x", asJSON, object), v2: v2post("?td_write_key[]=x", asJSON, object)},
	{name: "a key encoded twice is none", legacy: post(target+"&td%255Fwrite_key=x", asJSON, object), v2: v2post("?td%255Fwrite_key=x", asJSON, object)},
	{name: "a key inside a value is none", legacy: post(target+"&a=%26td_write_key%3Dx", asJSON, object), v2: v2post("?a=%26td_write_key%3Dx", asJSON, object)},
	{name: "other reserved names stay with a body", legacy: post(target+"&td_format=gif&td_redirect=https://x.example/&td_ip=td_ip", asJSON, object), v2: v2post("?td_format=gif&td_redirect=https://x.example/&td_ip=td_ip", asJSON, object)},
	{name: "8 kB", legacy: post(target+"&a="+strings.Repeat("x", 8192), asJSON, object), v2: v2post("?a="+strings.Repeat("x", 8192), asJSON, object)},
	{name: "2,000 parameters", legacy: post(target+strings.Repeat("&a=1", 2000), asJSON, object), v2: v2post("?"+strings.Repeat("&a=1", 2000)[1:], asJSON, object)},

	{name: "no key", legacy: post(event+"?a=1", asJSON, object), v2: v2auth(asJSON, object), answer: "403 missing_write_key"},
	{name: "key behind a semicolon", legacy: post(event+"?a=1;td_write_key=1234/abcd", asJSON, object), v2: v2auth(asJSON, object), answer: "403 missing_write_key"},
	{name: "a fragment behind the key", legacy: post(event+"?a=1&td_write_key=1234/abcd#top", asJSON, object), v2: v2post("?a=1", asJSON, object)},
	{name: "an encoded number sign behind the key", legacy: post(event+"?td_write_key=1234%2Fabcd%23top&a=1", asJSON, object), v2: v2post("?a=1", asJSON, object)},
	{name: "a key that is a fragment only", legacy: post(event+"?td_write_key=%23top&a=1&td_write_key=1234/abcd", asJSON, object), v2: v2post("?a=1", asJSON, object)},
	{name: "comma in the key", legacy: post(event+"?td_write_key=1234/abcd,1234/abcd", asJSON, object), answer: "400 invalid_write_key"},
	{name: "quotes around the key", legacy: post(event+"?td_write_key=%221234/abcd%22", asJSON, object), answer: "400 invalid_write_key"},
	{name: "nothing behind the key's slash", legacy: post(event+"?td_write_key=1234/", asJSON, object), answer: "400 invalid_write_key"},
	{name: "space in the key", legacy: post(event+"?td_write_key=1234/ab+cd", asJSON, object), answer: "400 invalid_write_key"},
	{name: "bad escape in the key", legacy: post(event+"?td_write_key=1234/%zz", asJSON, object), answer: "400 invalid_write_key"},
}

var oddHeaders = []odd{
	{name: "key in lower case", legacy: post(event, asJSON+"x-td-write-key: 1234/abcd\r\n", object), v2: v2post("", asJSON, object)},
	{name: "key in mixed case", legacy: post(event, asJSON+"X-Td-wRITE-kEY: 1234/abcd\r\n", object), v2: v2post("", asJSON, object)},
	{name: "no space behind the colon", legacy: post(event, asJSON+"X-TD-Write-Key:1234/abcd\r\n", object), v2: v2post("", asJSON, object)},
	{name: "space around the key", legacy: post(event, asJSON+"X-TD-Write-Key: \t 1234/abcd \t\r\n", object), v2: v2post("", asJSON, object)},
	{name: "key twice, the first one empty", legacy: post(event, asJSON+"X-TD-Write-Key:\r\n"+withKey, object), v2: v2post("", asJSON, object)},
	{name: "two keys in headers", legacy: post(event, asJSON+withKey+"X-TD-Write-Key: 9/second\r\n", object), v2: v2post("", asJSON, object)},
	{name: "header and URL", legacy: post(event+"?td_write_key=9/url", asJSON+withKey, object), v2: v2post("", asJSON, object)},
	{name: "header, and a URL key that cannot be read", legacy: post(event+"?td_write_key=%zz", asJSON+withKey, object), v2: v2post("", asJSON, object)},
	{name: "Basic beside the header", legacy: post(event, asJSON+withKey+"Authorization: Basic eDp5\r\n", object), v2: v2post("", asJSON, object)},
	{name: "Bearer beside the URL", legacy: post(target, asJSON+"Authorization: Bearer a.b.c\r\n", object), v2: v2post("", asJSON, object)},
	{name: "TD1 beside the URL", legacy: post(target, asJSON+"Authorization: TD1 9/wrong\r\n", object), v2: v2post("", asJSON, object)},
	{name: "TD1 beside both", legacy: post(event+"?td_write_key=9/url", asJSON+withKey+"Authorization: TD1 9/wrong\r\n", object), v2: v2post("", asJSON, object)},
	{name: "TD1 beside the header", legacy: post(event, asJSON+withKey+"Authorization: TD1 5/e\r\n", object), v2: v2post("", asJSON+"Authorization: TD1 5/e\r\n", object)},
	{name: "TD1 alone", legacy: post(event, asJSON+"Authorization: TD1 1234/abcd\r\n", object), v2: v2auth(asJSON+"Authorization: TD1 1234/abcd\r\n", object)},
	{name: "td1 and spaces", legacy: post(event, asJSON+"authorization: td1  \t1234/abcd\r\n", object), v2: v2auth(asJSON+"Authorization: TD1 1234/abcd\r\n", object)},
	{name: "Basic, then TD1", legacy: post(event, asJSON+"Authorization: Basic eDp5\r\nAuthorization: TD1 1234/abcd\r\n", object), v2: v2auth(asJSON+"Authorization: TD1 1234/abcd\r\n", object)},
	{name: "Basic alone", legacy: post(event, asJSON+"Authorization: Basic eDp5\r\n", object), v2: v2auth(asJSON, object), answer: "403 missing_write_key"},
	{name: "TD1 without a key", legacy: post(event, asJSON+"Authorization: TD1\r\n", object), v2: v2auth(asJSON+"Authorization: TD1\r\n", object), answer: "403 missing_write_key"},
	{name: "TD2", legacy: post(event, asJSON+"Authorization: TD2 1234/abcd\r\n", object), v2: v2auth(asJSON+"Authorization: TD2 1234/abcd\r\n", object), answer: "403 missing_write_key"},
	{name: "underscores in the key's name", legacy: post(event, asJSON+"X_TD_Write_Key: 1234/abcd\r\n", object), v2: v2auth(asJSON+"X_TD_Write_Key: 1234/abcd\r\n", object), answer: "403 missing_write_key"},
	{name: "a fragment behind the key in the header", legacy: post(event, asJSON+"X-TD-Write-Key: #\r\nX-TD-Write-Key: 1234/abcd #top\r\n", object), v2: v2post("", asJSON, object)},
	{name: "a bad key beside TD1", legacy: post(event, asJSON+"X-TD-Write-Key: 1234/\xe4\r\nAuthorization: TD1 1234/abcd\r\n", object), v2: v2auth(asJSON+"Authorization: TD1 1234/abcd\r\n", object)},
	{name: "comma in the key in the header", legacy: post(event, asJSON+"X-TD-Write-Key: 1234/abcd, 1234/abcd\r\n", object), answer: "400 invalid_write_key"},
	{name: "umlaut in the key", legacy: post(event, asJSON+"X-TD-Write-Key: 1234/\xe4\r\n", object), answer: "400 invalid_write_key"},

	{name: "repeated header", legacy: post(target, asJSON+"X-Multi: 1\r\nX-Other: x\r\nX-Multi: 2\r\nX-Multi: 1\r\n", object), v2: v2post("", asJSON+"X-Multi: 1\r\nX-Multi: 2\r\nX-Multi: 1\r\nX-Other: x\r\n", object)},
	{name: "empty header", legacy: post(target, asJSON+"X-Empty:\r\n", object), v2: v2post("", asJSON+"X-Empty:\r\n", object)},
	{name: "spaces around a value", legacy: post(target, asJSON+"X-Space: \t a  b \t\r\n", object), v2: v2post("", asJSON+"X-Space: a  b\r\n", object)},
	{name: "Latin-1 in a value", legacy: post(target, asJSON+"X-Latin: \xe4\xff\r\n", object), v2: v2post("", asJSON+"X-Latin: \xe4\xff\r\n", object)},
	{name: "UTF-8 in a value", legacy: post(target, asJSON+"X-Utf: 日本\r\n", object), v2: v2post("", asJSON+"X-Utf: 日本\r\n", object)},
	{name: "folded value", legacy: post(target, asJSON+"X-Folded: a\r\n  b\r\n", object), v2: v2post("", asJSON+"X-Folded: a b\r\n", object)},
	{name: "all bytes of a name", legacy: post(target, asJSON+"X-!#$%&'*+^`|~9: 1\r\n", object), v2: v2post("", asJSON+"X-!#$%&'*+^`|~9: 1\r\n", object)},
	{name: "placeholders of Caddy in a value", legacy: post(target, asJSON+"X-Brace: {http.request.uri} {env.HOME}\r\n", object), v2: v2post("", asJSON+"X-Brace: {http.request.uri} {env.HOME}\r\n", object)},
	{name: "long value", legacy: post(target, asJSON+"X-Long: "+strings.Repeat("x", 8192)+"\r\n", object), v2: v2post("", asJSON+"X-Long: "+strings.Repeat("x", 8192)+"\r\n", object)},
	{name: "names that Caddy drops", legacy: post(target, asJSON+"X_Under: 1\r\nX.Dot: 1\r\n", object), v2: v2post("", asJSON, object)},
	{name: "bare line feeds", legacy: strings.ReplaceAll(post(target, asJSON+"X-A: 1\r\n", object), "\r\n", "\n"), v2: v2post("", asJSON+"X-A: 1\r\n", object)},
	{
		name:   "a browser's headers",
		legacy: post(target, asJSON+"User-Agent: Mozilla/5.0 (X11)\r\nAccept: */*\r\nAccept-Language: de,en;q=0.5\r\nAccept-Encoding: gzip, br\r\nReferer: https://shop.example/?q=1\r\nOrigin: https://shop.example\r\nSec-Fetch-Mode: cors\r\nDNT: 1\r\nCookie: session=secret\r\nPriority: u=4\r\n", object),
		v2:     v2post("", asJSON+"User-Agent: Mozilla/5.0 (X11)\r\nAccept: */*\r\nAccept-Language: de,en;q=0.5\r\nAccept-Encoding: gzip, br\r\nReferer: https://shop.example/?q=1\r\nOrigin: https://shop.example\r\nSec-Fetch-Mode: cors\r\nDNT: 1\r\nPriority: u=4\r\n", object),
	},
	{
		name:   "headers of other proxies",
		legacy: post(target, asJSON+"Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nX-Request-Id: r\r\nTraceparent: 00-0-0-00\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Port: 443\r\n", object),
		v2:     v2post("", asJSON+"Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nX-Request-Id: r\r\nTraceparent: 00-0-0-00\r\nX-Forwarded-Port: 443\r\n", object),
	},
	{
		name:   "headers about the body stay",
		legacy: post(target, asJSON+"Content-Language: de\r\nContent-MD5: x\r\nContent-Disposition: attachment\r\nRange: bytes=0-1\r\nIf-None-Match: \"x\"\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n", object),
		v2:     v2post("", asJSON+"Content-Language: de\r\nContent-MD5: x\r\nContent-Disposition: attachment\r\nRange: bytes=0-1\r\nIf-None-Match: \"x\"\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n", object),
	},
	{name: "hop-by-hop headers", legacy: post(target, asJSON+"Connection: keep-alive, TE, Upgrade\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n", object), v2: v2post("", asJSON, object)},
	{name: "headers that Connection names", legacy: post(target, asJSON+"connection: x-one,X-TWO\r\nX-One: 1\r\nConnection: , \"x\", X-Three\r\nX-Two: 1\r\nX-Three: 1\r\nX-Four: 1\r\n", object), v2: v2post("", asJSON+"X-Four: 1\r\n", object)},
	{name: "Connection names the key", legacy: post(event, asJSON+withKey+"Connection: X-TD-Write-Key, Content-Length\r\n", object), v2: v2post("", asJSON, object)},
	{name: "Connection: close", legacy: post(target, asJSON+"Connection: close\r\n", object), v2: v2post("", asJSON, object)},
}

var oddBodies = []odd{
	{name: "no content type", legacy: post(target, "", object), v2: v2post("", asJSON, object)},
	{name: "empty content type", legacy: post(target, "Content-Type:\r\n", object), v2: v2post("", asJSON, object)},
	{name: "form", legacy: post(target, asForm, object), v2: v2post("", asJSON, object)},
	{name: "form in upper case with a charset", legacy: post(target, "Content-Type: APPLICATION/X-WWW-FORM-URLENCODED ; charset=UTF-8\r\n", object), v2: v2post("", asJSON, object)},
	{name: "text", legacy: post(target, asText, object), v2: v2post("", asJSON, object)},
	{name: "charset", legacy: post(target, "Content-Type: application/json; charset=\"utf-8\"; x=y\r\n", object), v2: v2post("", "Content-Type: application/json; charset=\"utf-8\"; x=y\r\n", object)},
	{name: "JSON in upper case", legacy: post(target, "Content-Type: Application/JSON\r\n", object), v2: v2post("", "Content-Type: Application/JSON\r\n", object)},
	{name: "text/json", legacy: post(target, "Content-Type: text/json\r\n", object), v2: v2post("", "Content-Type: text/json\r\n", object)},
	{name: "application/octet-stream", legacy: post(target, "Content-Type: application/octet-stream\r\n", object), v2: v2post("", "Content-Type: application/octet-stream\r\n", object)},
	{name: "two content types, JSON first", legacy: post(target, asJSON+asText, object), v2: v2post("", asJSON+asText, object)},
	{name: "two content types, text first", legacy: post(target, asText+asJSON, object), v2: v2post("", asJSON, object)},

	{name: "white space around", legacy: post(target, asForm, " \t\r\n{\"a\":1}\n\n"), v2: v2post("", asJSON, " \t\r\n{\"a\":1}\n\n")},
	{name: "10 kB of white space before", legacy: post(target, asForm, strings.Repeat(" \n", 5<<10)+object), v2: v2post("", asJSON, strings.Repeat(" \n", 5<<10)+object)},
	{name: "empty object", legacy: post(target, asJSON, "{}"), v2: v2post("", asJSON, "{}")},
	{name: "nested", legacy: post(target, asJSON, strings.Repeat(`{"a":[`, 1000)+"1"+strings.Repeat("]}", 1000)), v2: v2post("", asJSON, strings.Repeat(`{"a":[`, 1000)+"1"+strings.Repeat("]}", 1000))},
	{name: "big numbers", legacy: post(target, asJSON, `{"a":123456789012345678901234567890,"b":1e400,"c":-0.0,"d":1E+2}`), v2: v2post("", asJSON, `{"a":123456789012345678901234567890,"b":1e400,"c":-0.0,"d":1E+2}`)},
	{name: "a name twice", legacy: post(target, asJSON, `{"a":1,"a":2,"":3}`), v2: v2post("", asJSON, `{"a":1,"a":2,"":3}`)},
	{name: "escapes", legacy: post(target, asJSON, `{"a":"\u0000\ud83d\ude00\ud83d\/\b"}`), v2: v2post("", asJSON, `{"a":"\u0000\ud83d\ude00\ud83d\/\b"}`)},
	{name: "UTF-8", legacy: post(target, asJSON, "{\"日本\":\"\u2028😀\x7f<>&\"}"), v2: v2post("", asJSON, "{\"日本\":\"\u2028😀\x7f<>&\"}")},
	{name: "invalid UTF-8", legacy: post(target, asJSON, "{\"a\":\"\xff\xc3\"}"), v2: v2post("", asJSON, "{\"a\":\"\xff\xc3\"}")},
	{name: "placeholders of Caddy in the body", legacy: post(target, asJSON, `{"a":"{env.HOME}","b":{"c":"{http.request.uri}"}}`), v2: v2post("", asJSON, `{"a":"{env.HOME}","b":{"c":"{http.request.uri}"}}`)},
	{name: "a key in the body", legacy: post(target, asJSON, `{"td_write_key":"9/body","td_record_time":1}`), v2: v2post("", asJSON, `{"td_write_key":"9/body","td_record_time":1}`)},
	{name: "one byte below a buffer", legacy: post(target, asJSON, objectOf(4<<10-1)), v2: v2post("", asJSON, objectOf(4<<10-1))},
	{name: "a buffer", legacy: post(target, asJSON, objectOf(64<<10)), v2: v2post("", asJSON, objectOf(64<<10))},
	{name: "one byte above a buffer", legacy: post(target, asJSON, objectOf(64<<10+1)), v2: v2post("", asJSON, objectOf(64<<10+1))},
	{name: "one byte below the cap", legacy: post(target, asJSON, objectOf(v2Cap-1)), v2: v2post("", asJSON, objectOf(v2Cap-1))},
	{name: "the cap", legacy: post(target, asJSON, objectOf(v2Cap)), v2: v2post("", asJSON, objectOf(v2Cap))},
	{name: "byte-order mark", legacy: post(target, asJSON+"Content-MD5: x\r\nDigest: x\r\nContent-Digest: x\r\nRepr-Digest: x\r\n", "\ufeff"+object), v2: v2post("", asJSON, object)},
	{name: "byte-order mark in a form", legacy: post(target, asForm+"Content-Encoding: identity\r\n", "\ufeff"+object), v2: v2post("", asJSON+"Content-Encoding: identity\r\n", object)},
	{name: "byte-order mark before the cap", legacy: post(target, asForm, "\ufeff"+objectOf(v2Cap-3)), v2: v2post("", asJSON, objectOf(v2Cap-3))},
	{name: "byte-order mark above the cap", legacy: post(target, asForm, "\ufeff"+objectOf(v2Cap)), answer: "413 payload_too_large"},
	{name: "ping's content type without a ping's URL", legacy: post(event, asPing+withKey, object), v2: v2post("", asJSON, object)},
	{name: "one byte above the cap", legacy: post(target, asJSON, objectOf(v2Cap+1)), v2: v2post("", asJSON, objectOf(v2Cap+1)), answer: "413 payload_too_large"},

	// v2 refuses these, and what it says goes to the caller.
	{name: "byte-order mark before an array", legacy: post(target, asForm, "\ufeff[1]"), v2: v2post("", asForm, "\ufeff[1]")},
	{name: "compressed bytes that begin like a byte-order mark", legacy: post(target, asJSON+"Content-Encoding: br\r\n", "\ufeff"+object), v2: v2post("", asJSON+"Content-Encoding: br\r\n", "\ufeff"+object)},
	{name: "gzip", legacy: post(target, asJSON+"Content-Encoding: gzip\r\n", "\x1f\x8b\x08\x00rest"), v2: v2post("", asJSON+"Content-Encoding: gzip\r\n", "\x1f\x8b\x08\x00rest")},
	{name: "array", legacy: post(target, asJSON, `[{"a":1}]`), v2: v2post("", asJSON, `[{"a":1}]`)},
	{name: "two objects", legacy: post(target, asJSON, object+object), v2: v2post("", asJSON, object+object)},
	{name: "half an object", legacy: post(target, asForm, `{"a":`), v2: v2post("", asJSON, `{"a":`)},
	{name: "a form's own body", legacy: post(target, asForm, "a=1&b=2"), v2: v2post("", asForm, "a=1&b=2")},
	{name: "white space only", legacy: post(target, asJSON, " \n"), v2: v2post("", asJSON, " \n")},
	{name: "no body and no column", legacy: post(target, asJSON, ""), v2: v2post("", asJSON, "")},
	{name: "no body, and td_redirect only", legacy: post(target+"&td_redirect=https://x.example/", "", ""), v2: v2post("?td_redirect=https://x.example/", "", "")},
}

var oddFraming = []odd{
	{name: "one chunk", legacy: chunkedPost(asJSON, "", object), v2: v2post("", asJSON, object)},
	{name: "a chunk for each byte", legacy: chunkedPost(asJSON, "", strings.Split(object, "")...), v2: v2post("", asJSON, object)},
	{name: "chunks around a buffer", legacy: chunkedPost(asForm, "", objectOf(4<<10 + 1)[:4<<10], objectOf(4<<10 + 1)[4<<10:]), v2: v2post("", asJSON, objectOf(4<<10+1))},
	{name: "chunks up to the cap", legacy: chunkedPost(asJSON, "", objectOf(v2Cap)[:v2Cap-1], "}"), v2: v2post("", asJSON, objectOf(v2Cap))},
	{name: "chunks above the cap", legacy: chunkedPost(asJSON, "", objectOf(v2Cap), " "), v2: v2post("", asJSON, objectOf(v2Cap)+" "), answer: "413 payload_too_large"},
	{name: "chunk extensions", legacy: noLength + "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\n{\"a\r\n4;c=\"d;e\"\r\n\":1}\r\n0;last\r\n\r\n", v2: v2post("", asJSON, object)},
	{name: "zeros before a chunk's size", legacy: noLength + "Transfer-Encoding: chunked\r\n\r\n00007\r\n" + object + "\r\n000\r\n\r\n", v2: v2post("", asJSON, object)},
	{name: "Chunked", legacy: noLength + "transfer-encoding: Chunked\r\n\r\n7\r\n" + object + "\r\n0\r\n\r\n", v2: v2post("", asJSON, object)},
	{name: "trailer", legacy: chunkedPost(asJSON+"Trailer: X-Sum\r\n", "X-Sum: 7\r\n", object), v2: v2post("", asJSON, object)},
	{name: "a key in the trailer is none", legacy: strings.Replace(chunkedPost(asJSON+"Trailer: X-TD-Write-Key\r\n", withKey, object), "?td_write_key=1234/abcd", "", 1), v2: v2auth(asJSON, object), answer: "403 missing_write_key"},
	{name: "a content type in the trailer is none", legacy: chunkedPost("Trailer: Content-Type\r\n", "Content-Type: text/x\r\n", object), v2: v2post("", asJSON, object)},
	{name: "Expect", legacy: post(target, asJSON+"Expect: 100-continue\r\n", object), v2: v2post("", asJSON, object)},
	{name: "Expect and chunks", legacy: chunkedPost(asJSON+"Expect: 100-Continue\r\n", "", object), v2: v2post("", asJSON, object)},
	{name: "the same length twice", legacy: noLength + "Content-Length: 7\r\ncontent-length: 7\r\n\r\n" + object, v2: v2post("", asJSON, object)},
	{name: "zeros before the length", legacy: noLength + "Content-Length: 007\r\n\r\n" + object, v2: v2post("", asJSON, object)},
	{name: "HTTP/1.0", legacy: "POST " + target + " HTTP/1.0\r\n" + asJSON + "Content-Length: 7\r\n\r\n" + object, v2: v2post("", asJSON, object)},
}

var oddRecords = []odd{
	{name: "GET", legacy: get(target+"&b=2&a=1", ""), v2: v2post("", asJSON, `{"b":"2","a":"1"}`)},
	{name: "GET without columns", legacy: get(target, ""), v2: v2post("", asJSON, `{}`)},
	{name: "a name twice", legacy: get(target+"&a=1&%61=2&a", ""), v2: v2post("", asJSON, `{"a":["1","2",""]}`)},
	{name: "plus, escapes and bad escapes", legacy: get(target+"&a+b=%2B+%41&c=%zz%4", ""), v2: v2post("", asJSON, `{"a b":"+ A","c":"%zz%4"}`)},
	{name: "quotes and control bytes", legacy: get(target+"&%22=%5C%0A%00", ""), v2: v2post("", asJSON, `{"\"":"\\\n\u0000"}`)},
	{name: "bytes that are no UTF-8", legacy: get(target+"&a=%ff\xfe&b=%E6%97%A5", ""), v2: v2post("", asJSON, "{\"a\":\"\ufffd\ufffd\",\"b\":\"日\"}")},
	{name: "record time", legacy: get(target+"&td_record_time=001700000000", ""), v2: v2post("", asJSON, `{"td_record_time":1700000000}`)},
	{name: "address and agent", legacy: get(target+"&td_ip=td_ip&td_ua=td_ua", "User-Agent: A/1 \"x\"\r\n"), v2: v2post("", asJSON+"User-Agent: A/1 \"x\"\r\n", `{"td_ip":"127.0.0.1","td_ua":"A/1 \"x\""}`)},
	{name: "global id", legacy: get(target+"&td_global_id=td_global_id&a=1", "Cookie: x=y; _td_global=g-1\r\n"), v2: v2post("", asJSON, `{"td_global_id":"g-1","a":"1"}`)},
	{name: "no global id", legacy: get(target+"&td_global_id=td_global_id&a=1", ""), v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "key in the header", legacy: get(event+"?a=1", withKey), v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "TD1", legacy: get(event+"?a=1", "Authorization: TD1 1234/abcd\r\n"), v2: v2auth(asJSON+"Authorization: TD1 1234/abcd\r\n", `{"a":"1"}`)},
	{name: "GET with a body", legacy: strings.Replace(post(target+"&a=1", asForm+"Content-Encoding: gzip\r\n", "b=2"), "POST", "GET", 1), v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "conditional GET", legacy: get(target+"&a=1", "If-None-Match: \"x\"\r\nRange: bytes=0-1\r\nCache-Control: no-cache\r\n"), v2: v2post("", asJSON+"Cache-Control: no-cache\r\n", `{"a":"1"}`)},
	{name: "ping", legacy: post(target+"&a=1", asPing+"Ping-To: https://x.example/\r\n", "PING"), v2: v2post("", asJSON+"Ping-To: https://x.example/\r\n", `{"a":"1"}`)},
	{name: "ping with parameters", legacy: post(target+"&a=1", "Content-Type: Text/Ping; x=y\r\n", "PING"), v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "beacon without a body", legacy: post(target+"&a=1", asText, ""), v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "beacon without chunks", legacy: strings.Replace(chunkedPost("", ""), " HTTP/1.1", "&a=1 HTTP/1.1", 1), v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "beacon without a length", legacy: "POST " + target + "&a=1 HTTP/1.1\r\nHost: in.treasuredata.com\r\n\r\n", v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "pixel", legacy: get(target+"&td_format=pixel&a=1", "Accept: image/*\r\n"), v2: v2post("", asJSON+"Accept: image/*\r\n", `{"a":"1"}`), answer: "200 image/gif"},
	{name: "POST to a pixel", legacy: post(target+"&td_format=pixel&a=1", asText, "hello"), v2: v2post("", asJSON, `{"a":"1"}`), answer: "200 image/gif"},
	{name: "POST of an object to a pixel", legacy: post(target+"&td%5Fformat=%70ixel&a=%31", asJSON, object), v2: v2post("?a=%31", asJSON, object), answer: "200 image/gif"},
	{name: "POST of an object as text to a pixel", legacy: post(target+"&td_format=pixel", asText, " \n"+object), v2: v2post("", asJSON, " \n"+object), answer: "200 image/gif"},
	{name: "POST of an object behind a byte-order mark to a pixel", legacy: post(target+"&td_format=pixel", asForm, "\ufeff"+object), v2: v2post("", asJSON, object), answer: "200 image/gif"},
	{name: "POST of a long object to a pixel", legacy: post(target+"&td_format=pixel&a=1", asJSON, objectOf(v2Cap)), v2: v2post("?a=1", asJSON, objectOf(v2Cap)), answer: "200 image/gif"},
	{name: "POST of too long an object to a pixel", legacy: post(target+"&td_format=pixel&a=1", asJSON, objectOf(v2Cap+1)), answer: "413 payload_too_large"},
	{name: "POST of chunks to a pixel", legacy: strings.Replace(chunkedPost(asJSON, "", `{"a"`, `:1}`), target, target+"&td_format=pixel", 1), v2: v2post("", asJSON, object), answer: "200 image/gif"},
	{name: "POST to a pixel in a coding that is none", legacy: post(target+"&td_format=pixel&a=1", asText+"Content-Encoding: UTF-8\r\nContent-MD5: x\r\n", "hello"), v2: v2post("", asJSON, `{"a":"1"}`), answer: "200 image/gif"},
	{name: "an array to a pixel", legacy: post(target+"&td_format=pixel&a=1", asJSON, "[1]"), v2: v2post("", asJSON, `{"a":"1"}`), answer: "200 image/gif"},
	{name: "ping with an object", legacy: post(target+"&a=1", asPing, object), v2: v2post("?a=1", asJSON, object)},
	{name: "ping with digests of its body", legacy: post(target+"&a=1", asPing+"Content-MD5: x\r\nDigest: x\r\nContent-Digest: x\r\nRepr-Digest: x\r\n", "PING"), v2: v2post("", asJSON, `{"a":"1"}`)},
	{name: "redirect", legacy: get(target+"&a=1&td_redirect=https%3A%2F%2Fshop.example%2F", ""), v2: v2post("", asJSON, `{"a":"1"}`), answer: "302 https://shop.example/"},
	{name: "redirect that is not allowed", legacy: get(target+"&a=1&td_redirect=https://evil.example/", ""), v2: v2post("", asJSON, `{"a":"1"}`), answer: "400 redirect_not_allowed"},
	{name: "no key", legacy: get(event+"?a=1", ""), v2: v2auth(asJSON, `{"a":"1"}`), answer: "403 missing_write_key"},
}
