//go:build !race

package caddymodule

import (
	"net/http"
	"strings"
	"testing"
)

// TestAllocations holds what an ordinary call allocates in the handler. The race
// detector makes pools forget.
func TestAllocations(t *testing.T) {
	for name, test := range map[string]struct {
		method, uri string
		size        int
		want        float64
	}{
		"a POST":  {http.MethodPost, benchPath, 300, 3},
		"a pixel": {http.MethodGet, benchPath + "&" + benchQuery, 0, 9},
	} {
		h, read := stubHandler(), &stubBody{}
		r, w := benchRequest(test.method, test.uri, test.size), &stubWriter{header: http.Header{}}
		r.Body = read
		body := []byte(`{"a":"` + strings.Repeat("x", test.size) + `"}`)[:test.size]
		got := testing.AllocsPerRun(1000, func() {
			read.data = body
			clear(w.header)
			if err := h.ServeHTTP(w, r, nil); err != nil || w.status != http.StatusOK {
				t.Fatal(err, w.status)
			}
		})
		if got > test.want {
			t.Errorf("%s: %v allocations, want %v", name, got, test.want)
		}
	}
}
