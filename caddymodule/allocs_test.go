//go:build !race

package caddymodule

import (
	"net/http"
	"testing"
)

// TestHandlerAllocations bounds what an ordinary request may allocate in the
// gateway's own code. The race detector takes buffers from the pools.
func TestHandlerAllocations(t *testing.T) {
	for _, tc := range []struct {
		name, method, uri string
		size, most        int
	}{
		{"post", http.MethodPost, benchPath, 300, 3},
		{"pixel", http.MethodGet, benchPath + "&" + benchQuery, 0, 9},
		{"jsonp", http.MethodGet, benchJSONP(), 0, 9},
		{"js", http.MethodPost, benchJS, 300, 7},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := stubHandler()
			r := benchRequest(tc.method, tc.uri, tc.size)
			body := benchBody(tc.size)
			read := &stubBody{}
			r.Body = read
			w := &stubWriter{header: http.Header{}}
			got := testing.AllocsPerRun(1000, func() {
				read.data = body
				clear(w.header)
				if err := h.ServeHTTP(w, r, nil); err != nil || w.status != http.StatusOK {
					t.Fatal(err, w.status)
				}
			})
			if int(got) > tc.most {
				t.Errorf("%v allocations, want at most %d", got, tc.most)
			}
		})
	}
}
