package caddymodule

import (
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
		"commas":                    func(r *http.Request) { r.Header["Connection"] = []string{strings.Repeat(",", head)} },
		"cookies":                   func(r *http.Request) { r.Header["Cookie"] = []string{many("c%05x=v; ")} },
		"X-Forwarded-For":           func(r *http.Request) { r.Header["X-Forwarded-For"] = strings.Split(many("192.0.2.%d,"), ",") },
		"Via":                       func(r *http.Request) { r.Header["Via"] = strings.Split(many("1.1 v%05x,"), ",") },
		"empty keys":                func(r *http.Request) { r.Header["X-Td-Write-Key"] = make([]string, head/2) },
		"schemes without keys":      func(r *http.Request) { r.Header["Authorization"] = strings.Split(strings.Repeat("TD1 ,", head/5), ",") },
		"columns":                   func(r *http.Request) { r.URL.RawQuery += many("&c%05x=v") },
		"one column":                func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&c=v", head/4) },
		"keys":                      func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&td_write_key=", head/14) },
		"keys between columns":      func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&a&td_write_key=", head/16) },
		"redirects":                 func(r *http.Request) { r.URL.RawQuery += strings.Repeat("&td_redirect=%", head/14) },
		"escapes":                   func(r *http.Request) { r.URL.RawQuery += "&a=" + strings.Repeat("%", head) },
		"slashes":                   func(r *http.Request) { r.URL.Path += strings.Repeat("/", head) },
		"a content type of slashes": func(r *http.Request) { r.Header["Content-Type"] = []string{strings.Repeat("/;", head/2)} },
	} {
		for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodOptions} {
			t.Run(name+" "+method, func(t *testing.T) {
				r := benchRequest(method, benchPath, 0)
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
