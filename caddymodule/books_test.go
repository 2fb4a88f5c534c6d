package caddymodule

import (
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/postback"
)

// TestBooksOfResults compares the book of each result with the table in the runbook:
// every result that is counted has a row there.
func TestBooksOfResults(t *testing.T) {
	text, err := os.ReadFile("../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| result | the record | book | meaning |\n")
	if !found {
		t.Fatal("the runbook has no table of results")
	}
	books := map[string]string{} // by result
	for line := range strings.Lines(table) {
		cells := strings.Split(line, " | ")
		if len(cells) < 4 {
			if strings.HasPrefix(line, "|---") {
				continue
			}
			break
		}
		for result := range strings.SplitSeq(strings.TrimPrefix(cells[0], "| "), ", ") {
			books[strings.Trim(result, "`")] = strings.Trim(cells[2], "`")
		}
	}
	names := append(bookNames[:], "")
	for result := range labelValues(t, resultsTotal, "result") {
		book, ok := books[result]
		if !ok {
			t.Errorf("the runbook has no row for %s", result)
		}
		if result == cutResult {
			if book != "by v2's status" {
				t.Errorf("the runbook has %s in %q", result, book)
			}
			continue
		}
		if got := names[bookOf(result)]; got != book {
			t.Errorf("%s is in the book %q, the runbook says %q", result, got, book)
		}
	}
}

// figures are what the books of one kind show.
type figures struct {
	received, open, difference int64
	settled                    [len(bookNames)]int64
}

func (b *surfaceBooks) figures() (f figures) {
	f.received, f.open, f.difference = b.received.Load(), b.open.Load(), b.difference()
	for i := range b.settled {
		f.settled[i] = b.settled[i].Load()
	}
	return f
}

// minus is what has come since.
func (f figures) minus(before figures) figures {
	f.received -= before.received
	f.open -= before.open
	f.difference -= before.difference
	for i := range f.settled {
		f.settled[i] -= before.settled[i]
	}
	return f
}

// panickyWriter panics when an answer begins, and panickyBody when it is read.
type (
	panickyWriter struct{ http.ResponseWriter }
	panickyBody   struct{}
)

func (panickyWriter) WriteHeader(int)           { panic("the writer") }
func (panickyBody) Read([]byte) (int, error)    { panic("the body") }
func (panickyBody) Close() error                { return nil }
func callAnswered(*Handler, *http.Request)      {}
func withoutAnyKey(_ *Handler, r *http.Request) { r.URL.RawQuery = "" }

// TestBooks sends calls through the handler that end in each way, and reads the books
// of their kind.
func TestBooks(t *testing.T) {
	settled := func(in book) figures {
		f := figures{received: 1}
		f.settled[in] = 1
		return f
	}
	for name, tc := range map[string]struct {
		kind   postback.Kind
		method string
		change func(*Handler, *http.Request)
		writer http.ResponseWriter
		want   figures
	}{
		"forwarded":      {postback.Post, http.MethodPost, callAnswered, nil, settled(forwardedBook)},
		"refused":        {postback.Post, http.MethodPost, withoutAnyKey, nil, settled(refusedBook)},
		"another method": {postback.Other, http.MethodPut, callAnswered, nil, settled(refusedBook)},
		"a preflight":    {postback.Other, http.MethodOptions, callAnswered, nil, figures{}},
		"a beacon, a POST by its head": {postback.Post, http.MethodPost, func(_ *Handler, r *http.Request) {
			r.ContentLength, r.Body = 0, http.NoBody
			r.URL.RawQuery += "&a=1"
		}, nil, settled(forwardedBook)},
		"handed off": {postback.Post, http.MethodPost, func(h *Handler, _ *http.Request) { h.Handoff = true }, nil, settled(forwardedBook)},
		"no memory":  {postback.Post, http.MethodPost, func(h *Handler, _ *http.Request) { h.bodies.maxTotal = 1 }, nil, settled(lostBook)},
		"a panic when the body is read": {postback.Post, http.MethodPost, func(_ *Handler, r *http.Request) { r.Body = panickyBody{} }, nil,
			figures{received: 1, difference: 1}},
		"a panic when v2 has answered": {postback.Post, http.MethodPost, callAnswered, panickyWriter{&stubWriter{header: http.Header{}}},
			figures{received: 1, difference: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			h, r := stubHandler(), benchRequest(tc.method, benchPath, 300)
			r.Body = &stubBody{data: benchBody(300)}
			tc.change(h, r)
			w := tc.writer
			if w == nil {
				w = &stubWriter{header: http.Header{}}
			}
			before, noOutcomes := books[tc.kind].figures(), timesCounted(t, resultsTotal, noOutcomeResult)
			func() {
				defer func() { _ = recover() }()
				_ = h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
					w.WriteHeader(http.StatusOK)
					return nil
				}))
			}()
			got := books[tc.kind].figures().minus(before)
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if counted := timesCounted(t, resultsTotal, noOutcomeResult) - noOutcomes; counted != float64(tc.want.difference) {
				t.Errorf("%s is counted %v times, want %d", noOutcomeResult, counted, tc.want.difference)
			}
		})
	}
}

// TestBookOfRecord: where the answer is not about the record, what became of that
// counts.
func TestBookOfRecord(t *testing.T) {
	for name, tc := range map[string]struct {
		set  func(*call)
		want book
	}{
		"a redirect refused, the record forwarded": {func(c *call) { c.result, c.record = "redirect_not_allowed", forwardedResult }, forwardedBook},
		"a redirect refused, the record kept":      {func(c *call) { c.result, c.record = "redirect_not_allowed", spooledResult }, spooledBook},
		"a good answer cut":                        {func(c *call) { c.trip.Cut, c.trip.Status = true, 200 }, forwardedBook},
		"a refusal cut":                            {func(c *call) { c.trip.Cut, c.trip.Status = true, 403 }, refusedBook},
		"a failure cut":                            {func(c *call) { c.trip.Cut, c.trip.Status = true, 500 }, lostBook},
	} {
		var c call
		tc.set(&c)
		if got := c.book(); got != tc.want {
			t.Errorf("%s: it is in book %d, want %d", name, got, tc.want)
		}
	}
}

// TestBooksWhileCallsRun reads books that balance, while calls begin and end: none is
// ever missing.
func TestBooksWhileCallsRun(t *testing.T) {
	var b surfaceBooks
	var callers sync.WaitGroup
	const calls, each = 4, 100_000
	for range calls {
		callers.Go(func() {
			for range each {
				b.receive()
				b.settle(forwardedBook)
			}
		})
	}
	ended := make(chan struct{})
	go func() { callers.Wait(); close(ended) }()
	for running := true; running; {
		if missing := b.difference(); missing != 0 {
			t.Fatalf("%d calls are missing", missing)
		}
		select {
		case <-ended:
			running = false
		default:
		}
	}
	if got, want := b.figures(), (figures{received: calls * each, settled: [len(bookNames)]int64{forwardedBook: calls * each}}); got != want {
		t.Errorf("in the end: %+v, want %+v", got, want)
	}
}

// TestShownBooks: what td-migrate callers shows are the books, and a call without an
// outcome is said in words.
func TestShownBooks(t *testing.T) {
	const balanced = "The books balance: each request that has ended was forwarded, spooled, refused or lost."
	var b surfaceBooks
	for range 11 {
		b.receive()
	}
	for in, times := range map[book]int{forwardedBook: 4, spooledBook: 3, refusedBook: 2, lostBook: 1} {
		for range times {
			b.settle(in)
		}
	}
	want := shownBooks{Surface: "js", Received: 11, Forwarded: 4, Spooled: 3, Refused: 2, Lost: 1, UnderWay: 1}
	if got := b.show("js"); got != want || balance([]shownBooks{got}) != balanced {
		t.Errorf("got %+v, and %q", got, balance([]shownBooks{got}))
	}
	b.settle(noBook)
	want.UnderWay, want.Difference = 0, 1
	words := "The books do not balance. Nobody knows what became of these requests: 1 of js, 2 of k. See TDPostbackBooksDiffer in docs/runbook.md."
	if got := b.show("js"); got != want || balance([]shownBooks{{Surface: "post", Received: 1}, got, {Surface: "k", Difference: 2}}) != words {
		t.Errorf("got %+v", got)
	}
}

// TestBooksMetrics: all books are there from the start.
func TestBooksMetrics(t *testing.T) {
	got := labelValues(t, bookkeeping{}, "book")
	for _, name := range append(bookNames[:], receivedName) {
		if !got[name] {
			t.Errorf("the book %s is not there", name)
		}
	}
	surfaces := labelValues(t, bookkeeping{}, "surface")
	for _, name := range postback.KindNames {
		if !surfaces[name] {
			t.Errorf("there are no books of %s", name)
		}
	}
}
