//go:build !race

package caddymodule

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
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
		{"js", http.MethodPost, benchJS, 300, 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, h := range []*Handler{stubHandler(), steered(stubHandler(), largePlan(t).decide)} { // a second lane costs none
				if got := testing.AllocsPerRun(1000, callerOn(t, h, tc.method, tc.uri, tc.size)); int(got) > tc.most {
					t.Errorf("%v allocations, want at most %d", got, tc.most)
				}
			}
		})
	}
}

// TestLegacyAllocations: the lane of the legacy host allocates no more than that of v2,
// what v2 would do with the call included.
func TestLegacyAllocations(t *testing.T) {
	h := steered(stubHandler(), always(migration.Legacy))
	withReport(t, h)
	if got := testing.AllocsPerRun(1000, callerOn(t, h, http.MethodPost, benchPath, 300)); int(got) > 3 {
		t.Errorf("%v allocations, want at most 3", got)
	}
}

// TestJSONPCost bounds what a page view of a script tag's costs: 1.2 times a pixel. The
// two are measured in turns, so that both have the same of what else the machine does.
func TestJSONPCost(t *testing.T) {
	uris := [...]string{benchPath + "&" + benchQuery, benchJSONP()}
	var took [len(uris)][]time.Duration
	for range 500 {
		for i, uri := range uris {
			call := caller(t, http.MethodGet, uri, 0)
			start := time.Now()
			for range 100 {
				call()
			}
			took[i] = append(took[i], time.Since(start)/100)
		}
	}
	pixel, jsonp := slices.Min(took[0]), slices.Min(took[1])
	t.Logf("a pixel %v, JSONP %v, %.2f of it", pixel, jsonp, float64(jsonp)/float64(pixel))
	if 5*jsonp > 6*pixel {
		t.Errorf("a pixel takes %v, JSONP %v", pixel, jsonp)
	}
}

// TestSteeredCost bounds what a plan costs a call that goes to v2: half a microsecond. They
// are measured in turns, with and without one.
func TestSteeredCost(t *testing.T) {
	handlers := [...]*Handler{stubHandler(), steered(stubHandler(), largePlan(t).decide)}
	var took [len(handlers)][]time.Duration
	for range 500 {
		for i, h := range handlers {
			call := callerOn(t, h, http.MethodPost, benchPath, 300)
			start := time.Now()
			for range 100 {
				call()
			}
			took[i] = append(took[i], time.Since(start)/100)
		}
	}
	without, with := slices.Min(took[0]), slices.Min(took[1])
	t.Logf("a POST %v, with a plan %v", without, with)
	if with-without > 500*time.Nanosecond {
		t.Errorf("a POST takes %v, with a plan %v", without, with)
	}
}

// caller returns what sends a request through the whole handler.
func caller(t *testing.T, method, uri string, size int) func() {
	return callerOn(t, stubHandler(), method, uri, size)
}

func callerOn(t *testing.T, h *Handler, method, uri string, size int) func() {
	r := benchRequest(method, uri, size)
	body := benchBody(size)
	read := &stubBody{}
	r.Body = read
	w := &stubWriter{header: http.Header{}}
	return func() {
		read.data = body
		clear(w.header)
		w.status = 0
		if err := h.ServeHTTP(w, r, nil); err != nil || w.status != http.StatusOK {
			t.Fatal(err, w.status)
		}
	}
}
