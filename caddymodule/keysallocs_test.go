//go:build !race

package caddymodule

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/td-postback/gateway/postback"
)

// keysHandler is stubHandler with keys: the benchmarks' key is in a file with 10,000
// others.
func keysHandler() *Handler {
	h := stubHandler()
	var lines strings.Builder
	for n := range 10_000 {
		_, _ = fmt.Fprintf(&lines, "%d/%040x\n", n, n)
	}
	list, err := postback.ReadKeyList([]byte(lines.String() + benchKey))
	if err != nil {
		panic(err)
	}
	h.Keys = &Keys{policy: postback.NewPolicy([]string{"77"}, []string{"db", "shop*"}, true), file: new(keyFile)}
	h.Keys.file.list.Store(list)
	return h
}

// poster sends a POST through a handler.
func poster(t testing.TB, h *Handler) func() {
	return sender(t, h, http.MethodPost, benchPath, 300)
}

// TestKeysAllocations: looking for the key of a POST, and for its database, costs no
// memory.
func TestKeysAllocations(t *testing.T) {
	without, with := testing.AllocsPerRun(1000, poster(t, stubHandler())), testing.AllocsPerRun(1000, poster(t, keysHandler()))
	if with != without {
		t.Errorf("%v allocations with keys, %v without", with, without)
	}
}

// BenchmarkPostKeys is BenchmarkPost with keys.
func BenchmarkPostKeys(b *testing.B) {
	post := poster(b, keysHandler())
	b.ReportAllocs()
	for b.Loop() {
		post()
	}
}
