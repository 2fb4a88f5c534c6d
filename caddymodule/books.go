package caddymodule

import (
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/td-postback/gateway/postback"
)

// This file keeps books of the calls. Each call that is read is received, and later
// stands in exactly one other book, by what became of it. So the received ones are as
// many as all others and those under way together. If not, calls have ended of which
// nobody knows what became of them: after a panic, or a way through the handler that
// forgets it.

// book is one of the books that a call can end in.
type book int

const (
	forwardedBook book = iota // v2 has it, or the next handler
	spooledBook               // it is durable here
	refusedBook               // v2 or the gateway refuses it, or a part of it, for good
	lostBook                  // nobody has it, as far as is known: its caller was told
	noBook                    // it has no record, or no outcome
)

// bookNames has the books' names in metrics.
var bookNames = [...]string{"forwarded", "spooled", "refused", "lost"}

// receivedName is the name of the book of all of them.
const receivedName = "received"

// bookOf is the book of a result. The table is in docs/runbook.md.
func bookOf(result string) book {
	switch result {
	case forwardedResult, handedOffResult, postback.RedirectNotAllowed.Code:
		return forwardedBook
	case spooledResult:
		return spooledBook
	case upstream5xxResult, postback.UpstreamUnreachable.Code, postback.UpstreamTimeout.Code, postback.Overloaded.Code,
		postback.SpoolFull.Code, postback.SpoolUnavailable.Code:
		return lostBook
	case preflightResult, noOutcomeResult:
		return noBook
	default:
		return refusedBook
	}
}

// surfaceBooks are the books of the calls of one kind.
type surfaceBooks struct {
	received atomic.Int64
	open     atomic.Int64 // under way
	settled  [len(bookNames)]atomic.Int64
}

// books has them by kind, as a call's head says it: a POST of which only the body says
// that it is a beacon stays where it was received. They belong to the process, as all
// metrics do.
var books [len(postback.KindNames)]surfaceBooks

// receive notes that a call is read. A preflight has no record, and is in no book.
func (c *call) receive() {
	if c.r.Method == http.MethodOptions {
		return
	}
	c.books = &books[c.Kind]
	c.books.receive()
}

func (b *surfaceBooks) receive() {
	b.open.Add(1) // first: see difference
	b.received.Add(1)
}

// settle notes what became of a call, which has ended.
func (c *call) settle() {
	if c.books != nil {
		c.books.settle(c.book())
	}
}

// book is the book of a call's record, which says more than its result where v2's
// answer broke off, or a caller was refused beside it.
func (c *call) book() book {
	switch {
	case c.trip.Cut:
		return bookOf(upstreamResult(c.trip.Status))
	case c.record != "":
		return bookOf(c.record)
	default:
		return bookOf(c.result)
	}
}

// settle puts a call that is received into its other book.
func (b *surfaceBooks) settle(in book) {
	if in != noBook {
		b.settled[in].Add(1)
	}
	b.open.Add(-1) // last: see difference
}

// difference is how many calls have ended without a book. All numbers change while they
// are read. In this order, a call that begins or ends meanwhile is never one too many.
func (b *surfaceBooks) difference() int64 {
	left := b.received.Load() - b.open.Load()
	for i := range b.settled {
		left -= b.settled[i].Load()
	}
	return max(0, left)
}

// shownBooks are the books of the calls of one surface, since the process started.
type shownBooks struct {
	Surface    string `json:"surface"`
	Received   int64  `json:"received"`
	Forwarded  int64  `json:"forwarded"`
	Spooled    int64  `json:"spooled"`
	Refused    int64  `json:"refused"`
	Lost       int64  `json:"lost"`
	UnderWay   int64  `json:"under_way"`
	Difference int64  `json:"difference"` // calls that have ended without a book
}

// show reads the books. What changes meanwhile may be in some of the numbers alone, but
// not in the difference.
func (b *surfaceBooks) show(surface string) shownBooks {
	return shownBooks{
		Surface: surface, Difference: b.difference(), Received: b.received.Load(), UnderWay: b.open.Load(),
		Forwarded: b.settled[forwardedBook].Load(), Spooled: b.settled[spooledBook].Load(),
		Refused: b.settled[refusedBook].Load(), Lost: b.settled[lostBook].Load(),
	}
}

// showBooks are those of the surfaces that have received calls.
func showBooks() []shownBooks {
	shown := []shownBooks{}
	for kind, surface := range postback.KindNames {
		if b := books[kind].show(surface); b.Received > 0 {
			shown = append(shown, b)
		}
	}
	return shown
}

// bookkeeping shows the books.
type bookkeeping struct{}

var (
	booksTotal = newDesc("books_total",
		"Calls received, and what became of each: received are as many as forwarded, spooled, refused, lost and those under way together.", "surface", "book")
	booksDifference = newDesc("books_difference",
		"Calls that have ended and stand in no book but received: what became of them is not known.", "surface")
)

// Describe sends the books' descriptions.
func (bookkeeping) Describe(descs chan<- *prometheus.Desc) {
	descs <- booksTotal
	descs <- booksDifference
}

// Collect sends the books.
func (bookkeeping) Collect(metrics chan<- prometheus.Metric) {
	for kind, surface := range postback.KindNames {
		b := &books[kind]
		metrics <- prometheus.MustNewConstMetric(booksDifference, prometheus.GaugeValue, float64(b.difference()), surface)
		metrics <- prometheus.MustNewConstMetric(booksTotal, prometheus.CounterValue, float64(b.received.Load()), surface, receivedName)
		for i, name := range bookNames {
			metrics <- prometheus.MustNewConstMetric(booksTotal, prometheus.CounterValue, float64(b.settled[i].Load()), surface, name)
		}
	}
}
