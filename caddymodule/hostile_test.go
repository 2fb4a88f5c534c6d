package caddymodule

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

// TestHostileHeads sends heads of 1 MiB that are made to cost much through the
// whole handler. Quadratic work would take minutes. Fields of this size are
// refused: here, that this is done before anything else is.
func TestHostileHeads(t *testing.T) {
	const head = 1 << 20
	many := func(format string) string {
		var b strings.Builder
		for i := 0; b.Len() < head; i++ {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for name, set := range map[string]func(*http.Request){
		"names and Connection": func(r *http.Request) {
			for i := range head / 16 {
				r.Header[textproto.CanonicalMIMEHeaderKey(fmt.Sprintf("h%05x", i))] = []string{"v"}
			}
			r.Header["Connection"] = []string{many("t%05x,")[:head/2]}
		},
		"Connection in many lines": func(r *http.Request) {
			for i := range head / 16 {
				r.Header["Connection"] = append(r.Header["Connection"], fmt.Sprintf("t%05x", i))
				r.Header[textproto.CanonicalMIMEHeaderKey(fmt.Sprintf("h%05x", i))] = []string{"v"}
			}
		},
		"commas":               func(r *http.Request) { r.Header["Connection"] = []string{strings.Repeat(",", head)} },
		"cookies":              func(r *http.Request) { r.Header["Cookie"] = []string{many("c%05x=v; ")} },
		"X-Forwarded-For":      func(r *http.Request) { r.Header["X-Forwarded-For"] = strings.Split(many("192.0.2.%d,"), ",") },
		"Via":                  func(r *http.Request) { r.Header["Via"] = strings.Split(many("1.1 v%05x,"), ",") },
		"empty keys":           func(r *http.Request) { r.Header["X-Td-Write-Key"] = make([]string, head/2) },
		"schemes without keys": func(r *http.Request) { r.Header["Authorization"] = strings.Split(strings.Repeat("TD1 ,", head/5), ",") },
		"columns":              func(r *http.Request) { r.URL.RawQuery += many("&c%05x=v") },
		"one column":           func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&c=v", head/4) },
		"keys":                 func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&td_write_key=", head/14) },
		"keys between columns": func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&a&td_write_key=", head/16) },
		"JavaScript's keys":    func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&api_key=%zz", head/12) },
		"data":                 func(r *http.Request) { r.URL.RawQuery += "&data=" + strings.Repeat("A", head) },
		"data of surrogates":   func(r *http.Request) { r.URL.RawQuery += "&data=" + strings.Repeat("7aC9", head/4) },
		"data of columns": func(r *http.Request) {
			columns := many(`"td_ip":"td_ip","td_os":"td_os","c%05x":0,`)[:head/2]
			record := "{" + columns[:strings.LastIndexByte(columns, ',')] + "}"
			r.URL.RawQuery += "&data=" + base64.RawURLEncoding.EncodeToString([]byte(record))
		},
		"redirects":                 func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&td_redirect=%", head/14) },
		"escapes":                   func(r *http.Request) { r.URL.RawQuery += "&a=" + strings.Repeat("%", head) },
		"slashes":                   func(r *http.Request) { r.URL.Path += strings.Repeat("/", head) },
		"a content type of slashes": func(r *http.Request) { r.Header["Content-Type"] = []string{strings.Repeat("/;", head/2)} },
	} {
		for _, call := range []struct{ method, target string }{
			{http.MethodPost, benchPath}, {http.MethodGet, benchPath}, {http.MethodOptions, benchPath},
			{http.MethodPost, "/js/v3/event?api_key=" + benchKey}, {http.MethodPost, "/js/v3/event/db/tbl?api_key=" + benchKey}, {http.MethodGet, "/js/v3/event/db/tbl?api_key=" + benchKey + "&callback=f"},
		} {
			t.Run(name+" "+call.method+" "+call.target[:3], func(t *testing.T) {
				r := benchRequest(call.method, call.target, 0)
				set(r)
				w := &stubWriter{header: http.Header{}}
				began := time.Now()
				if err := stubHandler().ServeHTTP(w, r, nil); err != nil || w.status == 0 {
					t.Fatal(err, w.status)
				}
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		}
	}
}
