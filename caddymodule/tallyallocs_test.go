//go:build !race

package caddymodule

import (
	"net/http"
	"slices"
	"testing"
	"time"
)

// TestTallyAllocations: counting a call whose caller is known costs no memory.
func TestTallyAllocations(t *testing.T) {
	for _, tc := range []struct {
		name, method, uri string
		size              int
	}{
		{"post", http.MethodPost, benchPath, 300},
		{"pixel", http.MethodGet, benchPath + "&" + benchQuery, 0},
		{"jsonp", http.MethodGet, benchJSONP(), 0},
		{"js", http.MethodPost, benchJS, 300},
	} {
		counted := stubHandler()
		withReport(t, counted)
		without := testing.AllocsPerRun(1000, sender(t, stubHandler(), tc.method, tc.uri, tc.size))
		with := testing.AllocsPerRun(1000, sender(t, counted, tc.method, tc.uri, tc.size))
		if with != without {
			t.Errorf("%s: %v allocations with a report, %v without", tc.name, with, without)
		}
	}
}

// TestTallyCost bounds what counting costs a call: about 0.5 µs of an idle machine, and
// here twice as much, for one that is not. Calls with a report and without are measured in
// turns, so that both have the same of what else the machine does.
func TestTallyCost(t *testing.T) {
	for _, tc := range []struct {
		name, method, uri string
		size              int
	}{
		{"post", http.MethodPost, benchPath, 300},
		{"pixel", http.MethodGet, benchPath + "&" + benchQuery, 0},
	} {
		handlers := [2]*Handler{stubHandler(), stubHandler()}
		withReport(t, handlers[1])
		var took [2][]time.Duration
		send := [2]func(){sender(t, handlers[0], tc.method, tc.uri, tc.size), sender(t, handlers[1], tc.method, tc.uri, tc.size)}
		for range 1000 {
			for i := range send {
				start := time.Now()
				for range 50 {
					send[i]()
				}
				took[i] = append(took[i], time.Since(start)/50)
			}
		}
		without, with := slices.Min(took[0]), slices.Min(took[1])
		t.Logf("%s: %v with a report, %v without", tc.name, with, without)
		if with-without > time.Microsecond {
			t.Errorf("%s: counting takes %v", tc.name, with-without)
		}
	}
}

// BenchmarkTally is what counting costs a call, all of it.
func BenchmarkTally(b *testing.B) {
	for _, tc := range []struct{ name, method, uri string }{
		{"post", http.MethodPost, benchPath}, {"pixel", http.MethodGet, benchPath + "&" + benchQuery},
	} {
		for _, counted := range []bool{false, true} {
			name := tc.name
			h := stubHandler()
			if counted {
				withReport(b, h)
				name += "+report"
			}
			b.Run(name, func(b *testing.B) {
				size := 0
				if tc.method == http.MethodPost {
					size = 300
				}
				send := sender(b, h, tc.method, tc.uri, size)
				b.ReportAllocs()
				for b.Loop() {
					send()
				}
			})
		}
	}
}
