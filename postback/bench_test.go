package postback

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// What the contracts' functions cost for a typical request. The rest is in
// ../caddymodule and ../bench.

const (
	benchKey   = "1234/0123456789abcdef0123456789abcdef01234567"
	benchQuery = "td_format=pixel&event=view&page_url=https%3A%2F%2Fshop.example%2Fitem%3Fid%3D7&title=Caf%C3%A9+noir&user=42&td_ip=td_ip&td_ua=td_ua"
	benchAgent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
)

var benchQueries = map[string]string{
	"first":   "td_write_key=" + benchKey + "&a=1&b=2",
	"last":    "a=1&b=2&td_write_key=" + benchKey,
	"middle":  "a=1&td_write_key=" + benchKey + "&b=2",
	"encoded": "a=1&b=2&td_write_key=" + strings.Replace(benchKey, "/", "%2F", 1),
}

// benchBodies are records without a time.
var benchBodies = map[string][]byte{
	"300 B":  benchBody(1),
	"64 KiB": benchBody(64 << 10 / 300),
}

// benchBody is an object of so many times about 300 bytes.
func benchBody(n int) []byte {
	const members = `"event":"view","user":42,"session":"5f0c7b6e-7d1e-4b7a-9c55-0d3a1a3a6f10","page_url":"https://shop.example/item?id=7&ref=mail","title":"Caf\u00e9 noir","referrer":"https://www.example/","price":12.5,"tags":["a","b"],"new":true,"place":{"lat":35.6,"lon":139.7},"agent":"Mozilla/5.0 (X11; Linux x86_64)"`
	return []byte("{" + strings.TrimSuffix(strings.Repeat(members+",", n), ",") + "}")
}

// TestAllocations bounds what the pure functions may allocate for a typical
// request.
func TestAllocations(t *testing.T) {
	for name, query := range benchQueries {
		if n := testing.AllocsPerRun(100, func() { cutWriteKey(query) }); n > 1 {
			t.Errorf("cutWriteKey, key %s: %v allocations", name, n)
		}
	}
	r := &http.Request{Host: "in.treasuredata.com", Header: benchHeader}
	if n := testing.AllocsPerRun(100, func() { HeadBytes(r) }); n > 0 {
		t.Errorf("HeadBytes: %v allocations", n)
	}
	plain := "a sentence about 12 records of 1234/… in /postback/v3/event/db/tbl"
	if n := testing.AllocsPerRun(100, func() { MaskKeys(plain) }); n > 0 {
		t.Errorf("MaskKeys: %v allocations", n)
	}
	dst := make([]byte, 0, 4096)
	from := Caller{IP: "192.0.2.7", UserAgent: benchAgent}
	if n := testing.AllocsPerRun(100, func() { ReadQuery(dst, benchQuery, from, MaxBody) }); n > 2 {
		t.Errorf("appendRecord: %v allocations", n)
	}
	// Many runs, for the race detector takes scanners from encoding/json's pool.
	if n := testing.AllocsPerRun(1000, func() { timeChangeOf(dst, benchBodies["300 B"], time.Unix(testArrival, 0), false) }); n > 0 {
		t.Errorf("timeChangeOf: %v allocations", n)
	}
	data := keptPost(string(benchBodies["300 B"]), time.Unix(testArrival, 0), nil)
	if n := testing.AllocsPerRun(1000, func() { ToBatch(data, time.Unix(testArrival, 0), RecordUUID(testUUIDBytes, 7)) }); n > 2 {
		t.Errorf("ToBatch: %v allocations", n)
	}
}

func BenchmarkCutWriteKey(b *testing.B) {
	for name, query := range benchQueries {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if rest, param := cutWriteKey(query); len(rest) != len("a=1&b=2") || param.key != benchKey {
					b.Fatal(rest)
				}
			}
		})
	}
}

func BenchmarkRecord(b *testing.B) {
	from := Caller{IP: "192.0.2.7", UserAgent: benchAgent}
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if rec := ReadQuery(dst, benchQuery, from, MaxBody); rec.Columns != 6 {
			b.Fatal(rec.Columns)
		}
	}
}

func BenchmarkRecordTime(b *testing.B) {
	for name, body := range benchBodies {
		b.Run(name, func(b *testing.B) {
			dst := make([]byte, 0, maxTimeMember)
			b.ReportAllocs()
			for b.Loop() {
				if change := timeChangeOf(dst, body, time.Unix(testArrival, 0), false); change.timed != TimeAdded {
					b.Fatal(change.timed)
				}
			}
		})
	}
}

// benchHeader is what a small client sends.
var benchHeader = http.Header{
	"User-Agent":      {benchAgent},
	"Accept":          {"*/*"},
	"Accept-Encoding": {"gzip, deflate, br"},
	"Content-Type":    {"application/json"},
}

func BenchmarkHeadBytes(b *testing.B) {
	r := &http.Request{Host: "in.treasuredata.com", Header: benchHeader}
	b.ReportAllocs()
	for b.Loop() {
		HeadBytes(r)
	}
}

func BenchmarkMaskKeys(b *testing.B) {
	b.SetBytes(int64(len(benchQuery)))
	b.ReportAllocs()
	for b.Loop() {
		MaskKeys(benchQuery)
	}
}

func BenchmarkAppendHead(b *testing.B) {
	out := Request{
		Host:        "us01.records.in.treasuredata.com",
		Destination: Destination{"db", "tbl"},
		Header:      benchHeader,
		Credentials: Credentials{WriteKey: benchKey},
		Forwarded:   Forwarded{ClientIP: "192.0.2.7", Proto: "https", Host: "in.treasuredata.com", Via: "1.1 Caddy"},
	}
	var head []byte
	b.ReportAllocs()
	for b.Loop() {
		if head = out.AppendHead(head[:0]); len(head) == 0 {
			b.Fatal("no head")
		}
	}
}
