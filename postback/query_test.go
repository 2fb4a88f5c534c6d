package postback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAppendRecord(t *testing.T) {
	from := Caller{IP: "192.0.2.7", UserAgent: `Agent/1 "x"`, GlobalID: "gid-1"}
	for _, tc := range []struct {
		name, query, body string
		from              *Caller
		pixel             bool
		redirect          string
	}{
		{name: "nothing", query: "", body: `{}`},
		{name: "ampersands only", query: "&&&", body: `{}`},
		{name: "order is kept", query: "z=1&a=2&m=3", body: `{"z":"1","a":"2","m":"3"}`},
		{name: "values are strings", query: "n=1&b=true&x=null", body: `{"n":"1","b":"true","x":"null"}`},
		{name: "name without equals sign", query: "flag&x=1", body: `{"flag":"","x":"1"}`},
		{name: "empty value", query: "a=", body: `{"a":""}`},
		{name: "empty name", query: "=x", body: `{"":"x"}`},
		{name: "empty parameters between", query: "a=1&&b=2&", body: `{"a":"1","b":"2"}`},
		{name: "equals sign in a value", query: "a=b=c", body: `{"a":"b=c"}`},
		{name: "plus and escape", query: "a+b=c%20d+e%2B", body: `{"a b":"c d e+"}`},
		{name: "escaped separators", query: "a%3Db=c%26d", body: `{"a=b":"c&d"}`},
		{name: "lower and upper case hex", query: "a=%c3%A9", body: `{"a":"é"}`},
		{name: "bad escapes stay", query: "a=%zz&b=%&c=%4&d=%%41&%g1=1", body: `{"a":"%zz","b":"%","c":"%4","d":"%A","%g1":"1"}`},
		{name: "semicolon is no separator", query: "a=1;b=2", body: `{"a":"1;b=2"}`},
		{name: "quotes and backslashes", query: `a=%22%5C&%22=1&b="\`, body: `{"a":"\"\\","\"":"1","b":"\"\\"}`},
		{name: "control bytes", query: "a=%00%01%0a%0D%09%1f", body: `{"a":"\u0000\u0001\n\r\t\u001f"}`},
		{name: "DEL and HTML", query: "a=%7f<b>%26", body: "{\"a\":\"\x7f<b>&\"}"},
		{name: "raw UTF-8", query: "a=日本", body: `{"a":"日本"}`},
		{name: "escaped UTF-8", query: "a=%E6%97%A5%E6%9C%AC", body: `{"a":"日本"}`},
		{name: "half escaped UTF-8", query: "a=\xe6%97\xa5", body: `{"a":"日"}`},
		{name: "invalid UTF-8", query: "a=%ff%fe&b=\xff", body: "{\"a\":\"\ufffd\ufffd\",\"b\":\"\ufffd\"}"},
		{name: "surrogate half", query: "a=%ED%A0%80", body: "{\"a\":\"\ufffd\ufffd\ufffd\"}"},
		{name: "invalid UTF-8 beside what needs escaping", query: "a=%22%ff%22", body: "{\"a\":\"\\\"\ufffd\\\"\"}"},
		{name: "Shift_JIS", query: "t=%93%FA", body: "{\"t\":\"\ufffd\ufffd\"}"},
		{name: "macros left unexpanded", query: "idfa=__IDFA__&os={os}", body: `{"idfa":"__IDFA__","os":"{os}"}`},
		{name: "a JSON document as a value", query: `j={"a":[1,"b"]}`, body: `{"j":"{\"a\":[1,\"b\"]}"}`},
		{name: "an unencoded URL behind page_url", query: "page_url=http://x.example/?q=1&p=2#top", body: `{"page_url":"http://x.example/?q=1","p":"2#top"}`},

		{name: "a name twice", query: "a=1&b=x&a=2", body: `{"a":["1","2"],"b":"x"}`},
		{name: "a name three times, spelled in three ways", query: "a=1&%61=2&a", body: `{"a":["1","2",""]}`},
		{name: "names that differ in invalid bytes only", query: "%ff=1&%fe=2", body: "{\"\ufffd\":[\"1\",\"2\"]}"},
		{name: "names that differ in case", query: "a=1&A=2", body: `{"a":"1","A":"2"}`},

		{name: "td_format=pixel", query: "td_format=pixel&a=1", body: `{"a":"1"}`, pixel: true},
		{name: "td_format=pixel, escaped", query: "td%5fformat=%70ixel&a=1", body: `{"a":"1"}`, pixel: true},
		{name: "td_format with another value", query: "td_format=gif&a=1", body: `{"td_format":"gif","a":"1"}`},
		{name: "td_format=Pixel", query: "td_format=Pixel", body: `{"td_format":"Pixel"}`},
		{name: "td_redirect", query: "a=1&td_redirect=https%3A%2F%2Fx.example%2F%3Fa%3Db", body: `{"a":"1"}`, redirect: "https://x.example/?a=b"},
		{name: "td_redirect, empty", query: "td_redirect=&a=1", body: `{"a":"1"}`},
		{name: "td_redirect twice", query: "td_redirect=&td_redirect=http://a.example&td_redirect=http://b.example", body: `{}`, redirect: "http://a.example"},

		{name: "td_record_time", query: "td_record_time=1700000000", body: `{"td_record_time":1700000000}`},
		{name: "td_record_time, escaped digits", query: "td_record_time=%317", body: `{"td_record_time":17}`},
		{name: "td_record_time, leading zeros", query: "td_record_time=0017", body: `{"td_record_time":17}`},
		{name: "td_record_time, zero", query: "td_record_time=000", body: `{"td_record_time":0}`},
		{name: "td_record_time, not all digits", query: "td_record_time=17.5", body: `{"td_record_time":"17.5"}`},
		{name: "td_record_time, negative", query: "td_record_time=-17", body: `{"td_record_time":"-17"}`},
		{name: "td_record_time, empty", query: "td_record_time=", body: `{"td_record_time":""}`},
		{name: "td_record_time, other digits", query: "td_record_time=%D9%A1", body: `{"td_record_time":"١"}`},
		{name: "td_record_time twice", query: "td_record_time=1&td_record_time=x", body: `{"td_record_time":[1,"x"]}`},

		{name: "td_ip", query: "td_ip=td_ip", body: `{"td_ip":"192.0.2.7"}`},
		{name: "td_ip, IPv6", query: "td_ip=td_ip", from: &Caller{IP: "2001:db8::7"}, body: `{"td_ip":"2001:db8::7"}`},
		{name: "td_ip with another value", query: "td_ip=10.0.0.1", body: `{"td_ip":"10.0.0.1"}`},
		{name: "td_ip in two ways", query: "td_ip=td_ip&td_ip=10.0.0.1", body: `{"td_ip":["192.0.2.7","10.0.0.1"]}`},
		{name: "td_ua", query: "td_ua=td_ua", body: `{"td_ua":"Agent/1 \"x\""}`},
		{name: "td_ua is not decoded", query: "td_ua=td_ua", from: &Caller{UserAgent: "a+b%20c"}, body: `{"td_ua":"a+b%20c"}`},
		{name: "td_ua with another value", query: "td_ua=x", body: `{"td_ua":"x"}`},
		{name: "td_ua without a User-Agent", query: "td_ua=td_ua", from: &Caller{}, body: `{"td_ua":""}`},
		{name: "td_global_id", query: "td_global_id=td_global_id&a=1", body: `{"td_global_id":"gid-1","a":"1"}`},
		{name: "td_global_id without the cookie", query: "td_global_id=td_global_id&a=1", from: &Caller{}, body: `{"a":"1"}`},
		{name: "td_global_id with another value", query: "td_global_id=x", from: &Caller{}, body: `{"td_global_id":"x"}`},
		{name: "other td_ names are columns", query: "td_client_id=1&td_=2", body: `{"td_client_id":"1","td_":"2"}`},
		{name: "all specials", query: "td_format=pixel&td_ip=td_ip&td_ua=td_ua&td_global_id=td_global_id&td_record_time=1&e=x", pixel: true, body: `{"td_ip":"192.0.2.7","td_ua":"Agent/1 \"x\"","td_global_id":"gid-1","td_record_time":1,"e":"x"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			source := from
			if tc.from != nil {
				source = *tc.from
			}
			rec := ReadQuery(nil, tc.query, source, MaxBody)
			if string(rec.Body) != tc.body {
				t.Errorf("got  %s\nwant %s", rec.Body, tc.body)
			}
			if rec.Pixel != tc.pixel || rec.Redirect != tc.redirect || rec.TooLarge {
				t.Errorf("pixel %v, redirect %q, too large %v", rec.Pixel, rec.Redirect, rec.TooLarge)
			}
			if got := hasColumn(tc.query, source); got != (tc.body != "{}") {
				t.Errorf("has a column: %v", got)
			}
			if got := wantsPixel(tc.query); got != tc.pixel {
				t.Errorf("wants a pixel: %v", got)
			}
		})
	}
}

// TestManyColumns goes past the number up to which names are compared.
func TestManyColumns(t *testing.T) {
	for _, n := range []int{fewColumns - 1, fewColumns, fewColumns + 1, 300, 100_000} {
		var query, want strings.Builder
		for i := range n {
			fmt.Fprintf(&query, "c%d=%d&", i, i)
			fmt.Fprintf(&want, `,"c%d":"%d"`, i, i)
		}
		query.WriteString("c0=x&c5=y")
		expected := "{" + strings.Replace(strings.Replace(want.String()[1:], `"c0":"0"`, `"c0":["0","x"]`, 1), `"c5":"5"`, `"c5":["5","y"]`, 1) + "}"
		rec := ReadQuery(nil, query.String(), Caller{}, 10<<20)
		if string(rec.Body) != expected || rec.Columns != n {
			t.Errorf("%d columns: got %d, %.200s", n, rec.Columns, rec.Body)
		}
	}
}

// TestRecordLimit counts the record, not the query: escapes may make it
// shorter or longer.
func TestRecordCost(t *testing.T) {
	for query, want := range map[string]int64{
		"": 0, "a=1&b=2": 0, strings.Repeat("&", fewColumns-1): 0,
		strings.Repeat("&", fewColumns): (fewColumns + 1) * columnBytes,
	} {
		if got := QueryCost(query); got != want {
			t.Errorf("%d parameters: %d bytes, want %d", strings.Count(query, "&")+1, got, want)
		}
	}
	// The estimate must not be below what is really allocated.
	query := strings.TrimSuffix(strings.Repeat("abcd&", 50_000), "&")
	for _, query := range []string{query, numbered(50_000)} {
		result := testing.Benchmark(func(b *testing.B) {
			dst := make([]byte, 0, 2<<20)
			for b.Loop() {
				ReadQuery(dst, query, Caller{}, MaxBody)
			}
		})
		if used, cost := result.AllocedBytesPerOp(), QueryCost(query); used > cost {
			t.Errorf("%d bytes were allocated, %d estimated", used, cost)
		}
	}
}

// numbered is a query of so many columns with names of their own.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "&%d", i)
	}
	return b.String()[1:]
}

func TestRecordLimit(t *testing.T) {
	for _, tc := range []struct {
		query string
		size  int
	}{
		{"a=" + strings.Repeat("x", 92), 100},
		{"a=" + strings.Repeat("%41", 92), 100},
		{"a=" + strings.Repeat("%01", 15) + "xx", 100},
		{"a=" + strings.Repeat("\xff", 30) + "xx", 100},
	} {
		for limit, tooLarge := range map[int]bool{tc.size: false, tc.size - 1: true} {
			rec := ReadQuery([]byte("before"), tc.query, Caller{}, limit)
			if rec.TooLarge != tooLarge {
				t.Errorf("%.20s: too large for %d is %v, with %d bytes", tc.query, limit, rec.TooLarge, len(rec.Body)-len("before"))
			}
		}
	}
}

// hostileTargets must never be followed, with shop.example.com, *.example.org
// and localhost allowed.
var hostileTargets = []string{
	"https://evil.test/", "http://evil.test", "//evil.test/", "///evil.test", "////shop.example.com/", "//shop.example.com/",
	"/", "/relative", "relative", "?x=1", "#top", "https:", "https:/", "https://", "https:///shop.example.com",
	"https:shop.example.com", "https:/shop.example.com/", "http:evil.test", "https;//shop.example.com/",
	"javascript:alert(1)", "JaVaScRiPt:alert(1)//shop.example.com", "data:text/html,x", "vbscript:x", "file:///etc/passwd",
	"ftp://shop.example.com/", "mailto:a@shop.example.com", "ws://shop.example.com/", "blob:https://shop.example.com/x",
	"view-source:https://shop.example.com/", "intent://shop.example.com/", "tel:1",
	"https://shop.example.com@evil.test/", "https://user:pw@shop.example.com/", "https://@shop.example.com/", "https://shop.example.com%40evil.test/",
	`https://shop.example.com\@evil.test/`, `https:\\shop.example.com/`, `https://evil.test\.shop.example.com/`, `/\evil.test`, `\\evil.test`,
	"https://evil.test#@shop.example.com/", "https://evil.test?shop.example.com", "https://evil.test/shop.example.com",
	"https://shop.example.com.evil.test/", "https://evilshop.example.com/", "https://xshop.example.com/", "https://example.com/",
	"https://shop.example.com./", "https://example.org/", "https://.example.org/", "https://evilexample.org/", "https://a.example.org.evil.test/",
	"https://a..example.org/", "https://a_b.example.org:443@evil.test/", "https://evil.test/.example.org", "https://evil.test%2F.example.org/",
	"https://evil.test,.example.org/", "https://evil.test;.example.org/", "https://evil.test'.example.org/", "https://*.example.org/",
	"https://shop.example.com:8443/", "https://shop.example.com:80/", "http://shop.example.com:443/", "https://shop.example.com:/", "https://shop.example.com:443:443/",
	"https://shop.example.com:443@evil.test/", "https://localhost:22/", "https://127.0.0.1/", "https://[::1]/", "https://[shop.example.com]/", "https://0x7f.1/",
	"https://ｓhop.example.com/", "https://shop。example。com/", "https://shop.example.com\u2028/", "https://sh%6fp.example.com/", "https://shop.example.com%00.evil.test/",
	"https://shop.example.com\r\nLocation: https://evil.test/", "https://shop.example.com/\nx", "https://shop.example.com/\x00", "\thttps://shop.example.com/", " https://shop.example.com/",
	"https://\tshop.example.com/", "https://evil.test\t.example.org/", "ht\ntps://shop.example.com/", "https://shop.example.com/\x7f",
	"https://td_global_id/", "https://td_global_id.example.org@evil.test/",
}

// FuzzRecord checks that the output is one valid JSON object whose columns are
// the query's, and that the key is never in it.
func FuzzRecord(f *testing.F) {
	for _, seed := range []string{
		"", "a=1&b=%20+&a=2", "td_write_key=KEYKEYKEY&a=%zz", "td_record_time=12&td_record_time=x", "%22%5c%00=%ff", "td_ip=td_ip&td_format=pixel&td_redirect=x",
		"a=\xe6%97\xa5&=", "td%5Fwrite%5Fkey=KEYKEYKEY&&x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		rest, _ := cutWriteKey(query)
		rec := ReadQuery(nil, rest, Caller{IP: "192.0.2.1", UserAgent: "ua", GlobalID: "gid"}, 1<<30)
		if !json.Valid(rec.Body) || !utf8.Valid(rec.Body) {
			t.Fatalf("%q: not valid: %q", query, rec.Body)
		}
		want, order := columnsOf(rest)
		got, names := decodeObject(t, rec.Body)
		if !slices.Equal(names, order) {
			t.Errorf("%q: columns %q, want %q", query, names, order)
		}
		for name, values := range want {
			if !slices.Equal(got[name], values) {
				t.Errorf("%q: column %q has %q, want %q", query, name, got[name], values)
			}
		}
		if rec.Columns != len(order) {
			t.Errorf("%q: %d columns, want %d", query, rec.Columns, len(order))
		}
		if _, found := got["td_write_key"]; found {
			t.Errorf("%q: the key is a column", query)
		}
	})
}

// columnsOf is what a query means, said in another way than record.go does.
func columnsOf(query string) (values map[string][]string, order []string) {
	values = make(map[string][]string)
	for param := range strings.SplitSeq(query, "&") {
		if param == "" {
			continue
		}
		name, value, _ := strings.Cut(param, "=")
		name, value = toValid(lenient(name)), lenient(value)
		switch {
		case name == "td_format" && value == "pixel", name == "td_redirect":
			continue
		case name == "td_ip" && value == name:
			value = "192.0.2.1"
		case name == "td_ua" && value == name:
			value = "ua"
		case name == "td_global_id" && value == name:
			value = "gid"
		case name == "td_record_time" && value != "" && strings.Trim(value, "0123456789") == "":
			if value = strings.TrimLeft(value, "0"); value == "" {
				value = "0"
			}
		}
		if _, known := values[name]; !known {
			order = append(order, name)
		}
		values[name] = append(values[name], toValid(value))
	}
	return values, order
}

// lenient unescapes piece by piece with the standard library.
func lenient(s string) string {
	var b strings.Builder
	for s != "" {
		if len(s) >= 3 && s[0] == '%' {
			if c, err := url.QueryUnescape(s[:3]); err == nil {
				b.WriteString(c)
				s = s[3:]
				continue
			}
		}
		if s[0] == '+' {
			b.WriteByte(' ')
		} else {
			b.WriteByte(s[0])
		}
		s = s[1:]
	}
	return b.String()
}

func toValid(s string) string {
	return string([]rune(s)) // each invalid byte becomes U+FFFD
}

// decodeObject reads an object with the standard library, keeping its order.
func decodeObject(t *testing.T, body []byte) (values map[string][]string, order []string) {
	t.Helper()
	values = make(map[string][]string)
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		t.Fatal(token, err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value any
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		many, ok := value.([]any)
		if !ok {
			many = []any{value}
		}
		texts := make([]string, 0, len(many))
		for _, v := range many {
			texts = append(texts, fmt.Sprint(v))
		}
		order = append(order, name.(string))
		values[name.(string)] = texts
	}
	return values, order
}

// FuzzRecordLimit checks what is known of a record before it is made, and that
// a limit changes nothing but whether it is taken.
func FuzzRecordLimit(f *testing.F) {
	f.Add("a=1&td_format=pixel", uint16(3), true)
	f.Add("td%5fformat=%70ixel&a=%01%01%01", uint16(20), false)
	f.Add("td_global_id=td_global_id&td_redirect=x", uint16(2), false)
	f.Add(strings.Repeat("&", 40)+"a&a&b=%22", uint16(9), true)
	f.Fuzz(func(t *testing.T, query string, limit uint16, cookie bool) {
		from := Caller{IP: "192.0.2.1", UserAgent: "\"ua\xff"}
		if cookie {
			from.GlobalID = "gid"
		}
		whole := ReadQuery(nil, query, from, 1<<30)
		if whole.TooLarge || !json.Valid(whole.Body) {
			t.Fatalf("%q: %q", query, whole.Body)
		}
		if wantsPixel(query) != whole.Pixel {
			t.Errorf("%q: wants a pixel: %v, but the record says %v", query, wantsPixel(query), whole.Pixel)
		}
		if hasColumn(query, from) != (whole.Columns > 0) || whole.Columns == 0 && string(whole.Body) != "{}" {
			t.Errorf("%q: has a column: %v, but the record is %q", query, hasColumn(query, from), whole.Body)
		}
		limited := ReadQuery([]byte("before"), query, from, int(limit))
		if limited.TooLarge != (len(whole.Body) > int(limit)) {
			t.Errorf("%q: %d bytes, limit %d: too large: %v", query, len(whole.Body), limit, limited.TooLarge)
		}
		if !limited.TooLarge && string(limited.Body) != "before"+string(whole.Body) || !bytes.HasPrefix(limited.Body, []byte("before")) {
			t.Errorf("%q: %q behind what was there, %q alone", query, limited.Body, whole.Body)
		}
	})
}

func TestCutAnswer(t *testing.T) {
	for _, tc := range []struct {
		name, query, rest string
		pixel             bool
		redirect          string
	}{
		{name: "nothing"},
		{name: "neither", query: "a=1&b=%7e&&td_ip=td_ip", rest: "a=1&b=%7e&&td_ip=td_ip"},
		{name: "pixel alone", query: "td_format=pixel", pixel: true},
		{name: "pixel between others", query: "a=1&td_format=pixel&b=2", rest: "a=1&b=2", pixel: true},
		{name: "encoded", query: "td%5Fformat=%70ixel&td_redirec%74=https%3A%2F%2Fx.example&a=%31", rest: "a=%31", pixel: true, redirect: "https://x.example"},
		{name: "another format is a column", query: "td_format=gif&td_format=pixel&td_format", rest: "td_format=gif&td_format", pixel: true},
		{name: "every redirect leaves, the first that says something counts", query: "td_redirect=&td_redirect=b&a=1&td_redirect=c&td_redirect", rest: "a=1", redirect: "b"},
		{name: "only ampersands left", query: "&td_format=pixel&", pixel: true},
		{name: "longer names", query: "td_format2=pixel&xtd_redirect=b", rest: "td_format2=pixel&xtd_redirect=b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rest, asked := CutAnswer(tc.query)
			if rest != tc.rest || asked.Pixel != tc.pixel || asked.Redirect != tc.redirect {
				t.Errorf("got %q, %v, %q", rest, asked.Pixel, asked.Redirect)
			}
		})
	}
}

// FuzzCutAnswer: what is asked for is what a record from the same query asks
// for, and the rest asks for nothing and has the same columns.
func FuzzCutAnswer(f *testing.F) {
	for _, seed := range []string{"", "a=1&td_format=pixel&td_redirect=x", "td%5Fformat=pixel&&b", "td_format=gif&td_redirect=&td_redirect=%zz"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		rest, asked := CutAnswer(query)
		want := ReadQuery(nil, query, Caller{}, MaxBody)
		if asked.Pixel != want.Pixel || asked.Redirect != want.Redirect {
			t.Errorf("%q: got %v, %q, want %v, %q", query, asked.Pixel, asked.Redirect, want.Pixel, want.Redirect)
		}
		if left := ReadQuery(nil, rest, Caller{}, MaxBody); left.Pixel || left.Redirect != "" || !bytes.Equal(left.Body, want.Body) {
			t.Errorf("%q: %q is left, which means %s", query, rest, left.Body)
		}
	})
}

func TestIsUTF8Query(t *testing.T) {
	for query, want := range map[string]bool{"": true, "a=b+c": true, "a=%C3%A9": true, "a=\xc3\xa9": true, "a=%ff": false, "a=\xff": false, "%c3=1": false, "a=%f": true} {
		if got := IsUTF8Query(query); got != want {
			t.Errorf("%q: got %v", query, got)
		}
	}
}

// TestFilledQuery: a column is filled in if it holds its own name.
func TestFilledQuery(t *testing.T) {
	from := Caller{IP: "192.0.2.1", UserAgent: "x", GlobalID: "g"}
	for query, want := range map[string]bool{
		"a=td_ip": false, "td_ip=1": false, "td_ip=td_ip": true, "td_ua=td_ua": true, "td_global_id=td_global_id": true, "td_ip=%74d_ip": true, "td_format=pixel": false,
	} {
		if got := ReadQuery(nil, query, from, MaxBody).Filled; got != want {
			t.Errorf("%s: got %v", query, got)
		}
	}
}
