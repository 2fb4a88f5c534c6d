package postback

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLinear: whatever a caller repeats, reading it takes time that is linear in
// its length.
func TestLinear(t *testing.T) {
	from := Caller{IP: "192.0.2.7", GlobalID: "g"}
	readers := map[string]func(string){
		"cutWriteKey": func(s string) { cutWriteKey(s) },
		"ReadQuery":   func(s string) { ReadQuery(nil, s, from, 8*MaxBody) },
		"CutAnswer":   func(s string) { CutAnswer(s) },
		"hasColumn":   func(s string) { hasColumn(s, from) },
		"wantsPixel":  func(s string) { wantsPixel(s) },
		"findKey":     func(s string) { findKey(decodeKey(s), strings.Split(s, "&"), strings.Split(s, "&")) },
		"parsePath":   func(s string) { parsePath("/postback/v3/event/" + s) },
		"RegionOf":    func(s string) { RegionOf(s) },
		"HopsOf":      func(s string) { HopsOf(strings.Split(s, "&")) },
		"mediaType":   func(s string) { mediaType(s) },
		"findTimes":   func(s string) { findTimes([]byte(s)) },
		"readPlainEvent": func(s string) {
			readPlainEvent([]byte("POST /postback/v3/event/db/tbl HTTP/1.1\r\nContent-Type: application/json;" + s + "\r\nContent-Encoding: " + s + "\r\n\r\n"))
		},
		"ReadReceipts": func(s string) { ReadReceipts([]byte(`{"receipts":[{"success":false,"error":[`+s), 1) },
		"readJSQuery":  func(s string) { jsCall(s) },
		"AppendData":   func(s string) { _, _ = jsCall("data="+s).AppendData(nil, MaxBody) },
		"AppendMended": func(s string) { AppendMended(nil, []byte(s)) },
		"callback":     func(s string) { _, _ = jsCall("callback=" + s).Callback() },
		"Filler": func(s string) {
			if f, refused := jsCall("").NewFiller([]byte("{"+strings.TrimSuffix(s, ",")+"}"), from, jsNow, 8*MaxBody); refused == nil {
				f.Append(nil)
			}
		},
		"redirect": func(s string) { RedirectTarget("https://x.example/"+s, []string{"*.example"}, "g") },
	}
	var numbered strings.Builder
	for i := range 1 << 16 {
		fmt.Fprintf(&numbered, "&c%05x=v", i)
	}
	texts := map[string]func(n int) string{"many columns": func(n int) string { return numbered.String()[:n] }}
	for _, part := range []string{
		"&", "&a=1", "&td_write_key=", "&td_write_key=%zz", "&a&td_write_key", "&%74d_write_key=#", "&td_redirect=%", "&td_format=pixel", "&td_ip=td_ip",
		"%", "%25", "#", "/", ":", ",", ";", "TD1 ,", "&TD1 ", `"time":1,`, `"td_ip":"td_ip",`, `"td_os":"td_os",`, "&api_key=%zz", "&data=", "\xed\xa0\xbd", "AAAA", `"`, `\`, "{", "td_global_id",
	} {
		texts[part] = func(n int) string { return strings.Repeat(part, n/len(part)+1) }
	}
	for reader, read := range readers {
		for name, text := range texts {
			t.Run(reader+" "+name, func(t *testing.T) {
				checkLinear(t, func(n int) func() {
					input := text(n)
					return func() { read(input) }
				})
			})
		}
	}
}

// checkLinear compares the processor time that work takes for an input of n bytes and
// for one of 8n. The quickest of several runs counts: the first ones may pay for
// memory. What is over in a moment is linear enough.
func checkLinear(t *testing.T, work func(n int) func()) {
	t.Helper()
	const (
		n      = 16 << 10
		factor = 8
		moment = time.Millisecond
	)
	small, large := work(n), work(factor*n)
	var short time.Duration
	for tries := range 15 {
		long := cpuTime(large)
		if long < moment {
			return
		}
		for range 5 {
			if own := cpuTime(small); short == 0 || own < short {
				short = own
			}
		}
		if long < factor*factor/2*short {
			return
		}
		t.Logf("try %d: %d bytes take %v, %d bytes take %v", tries, n, short, factor*n, long)
	}
	t.Error("that is not linear")
}
