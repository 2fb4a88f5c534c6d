package postback

import (
	"net/http"
	"testing"
	"time"
)

const (
	testUUID     = "01234567-89ab-cdef-0123-456789abcdef"
	testUUIDPart = `"uuid":"` + testUUID + `"`
)

var testUUIDBytes = [16]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}

// keptPost keeps a POST, as the handler does.
func keptPost(body string, header http.Header, credentials Credentials) []byte {
	q := Request{Host: "v2", Destination: Destination{"db", "tbl"}, Header: header, Credentials: credentials}
	q.UseBody([]byte(body), nil)
	data, _ := AppendKept(nil, &q, time.Unix(testArrival, 0))
	return data
}

func BenchmarkToBatch(b *testing.B) {
	for name, body := range benchBodies {
		q := Request{
			Host:        "us01.records.in.treasuredata.com",
			Destination: Destination{"db", "tbl"},
			Header:      benchHeader,
			Credentials: Credentials{WriteKey: benchKey},
			Forwarded:   Forwarded{ClientIP: "192.0.2.7", Proto: "https", Host: "in.treasuredata.com", Via: "1.1 Caddy"},
		}
		q.UseBody(body, nil)
		arrival := time.Unix(testArrival, 0)
		data, _ := AppendKept(nil, &q, arrival)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok := ToBatch(data, arrival, testUUIDBytes); !ok {
					b.Fatal("it goes alone")
				}
			}
		})
	}
}

func TestToBatch(t *testing.T) {
	const key = "1234/0123456789abcdef"
	for _, tc := range []struct{ name, body, want string }{
		{"no time", `{"a":1}`, `{"a":1,"time":1800000000,` + testUUIDPart + `}`},
		{"its own time", `{"time":1800000000}`, `{"time":1800000000,` + testUUIDPart + `}`},
		{"no member", `{}`, `{"time":1800000000,` + testUUIDPart + `}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, record, ok := ToBatch(keptPost(tc.body, nil, Credentials{WriteKey: key}), time.Unix(testArrival, 0), testUUIDBytes)
			if want := (BatchGroup{"db", "tbl", key}); string(record) != tc.want || !ok || g != want {
				t.Errorf("got %q, %v, %v, want %q", record, g, ok, tc.want)
			}
		})
	}
}
