package caddymodule

import (
	"cmp"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// This file serves calls with several events, as mobile SDKs and scripts send them.
// Their rules are in package postback.
//
// An SDK takes an answer below 300 to be about each event, and deletes those that it
// says are taken, or can never be. After one that leaves an event, old SDKs send all
// of them again at once, for ever; and after 413 they send the same again whenever the
// app does. So a call gets 200 when it is known of each event that v2 has it, or will
// never take it, or that it is in the spool. Otherwise it gets an error as a whole,
// after which the SDKs wait, and send all of the events again: those that v2 has, it
// drops by their uuid.

const (
	// maxKeenSends is how many requests to v2 a call has on the way at a time.
	maxKeenSends = 4

	// keenTries is how often an event is sent that v2 does not take while it takes
	// others.
	keenTries = 3

	// keenSendCost is about what a request to v2 holds in memory, beside its records
	// and what they are compressed to.
	keenSendCost = 512 << 10
)

// keenCall is a call with several events on its way.
type keenCall struct {
	call
	h       *Handler
	held    atomic.Int64 // what it holds in memory beside its head, in bytes
	account string       // that v2 counts it for
	until   time.Time
	unkept  error // why its events were not kept before v2 is asked
	kept    bool  // those of its events that v2 has not taken

	mu      sync.Mutex
	ended   bool                         // what v2 says of its events is too late
	trips   upstream.Trip                // all to v2, together
	refused *postback.Refusal            // why v2 does not take all of the events now
	because string                       // what became of the call then, if it is not the refusal's code
	trouble *eventsTrouble               // the first one at v2, if there is a spool
	unsure  map[*postback.KeenEvent]bool // events that go alone and that v2 may have
}

// eventsTrouble is an answer of v2's, or that there is none, for which it does not take
// events.
type eventsTrouble struct {
	of     postback.Destination
	result spool.Result
}

// serveKeen sends the events of a call, and answers as its SDK expects it. It goes on
// when the caller leaves: the events are on their way.
func (h *Handler) serveKeen(c *call) {
	k := &keenCall{call: *c, h: h, account: c.Payer()}
	defer func() {
		h.bodies.free(k.held.Load())
		*c = k.call
	}()
	body := io.Reader(k.r.Body)
	if k.body != nil { // its tables were read
		body = io.MultiReader(k.body.reader(), body)
	}
	events, refused := k.read(body)
	h.dropBody(&k.call)
	if refused != nil {
		h.refuse(&k.call, refused)
		return
	}
	if k.unkept = k.keepFirst(events); k.unkept == nil {
		k.answer(events, spooledResult)
	} else {
		k.sendOrKeep(events)
	}
}

// sendOrKeep sends the events to v2, and keeps those that it does not take now.
func (k *keenCall) sendOrKeep(events *postback.Keen) {
	sent := make(chan struct{})
	late := time.NewTimer(k.to.Timeout)
	defer late.Stop()
	k.until = time.Now().Add(k.to.Timeout)
	go func() {
		defer close(sent)
		k.send(events)
	}()
	select {
	case <-sent:
		k.settle(events)
	case <-late.C: // the caller has waited for long enough
		k.fail(postback.EventsLate, "")
		k.settle(events)
		_ = http.NewResponseController(k.w).Flush()
		<-sent
		k.trip = k.trips
	}
	if k.trouble != nil {
		k.h.warnOfEvents(&k.call, k.trouble.of, &k.trouble.result, k.kept)
	}
}

// settle answers by what is known of the events by now.
func (k *keenCall) settle(events *postback.Keen) {
	refused, because := k.end()
	switch {
	case refused == nil:
		k.answer(events, forwardedResult)
	case refused.Status < http.StatusInternalServerError || k.h.Spool == nil:
		k.h.refuse(&k.call, refused)
		k.result = cmp.Or(because, k.result)
	default:
		k.keepRest(events)
	}
}

// end says how sending has gone. What v2 says of events after that is not noted.
func (k *keenCall) end() (refused *postback.Refusal, because string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.trip = k.trips
	return k.refused, k.because
}

// hold counts bytes in max_buffered that the call is about to hold in memory, if they
// fit, or bytes that it does not hold any more.
func (k *keenCall) hold(bytes int) bool {
	reserve := k.h.bodies.reserve
	if k.audited {
		reserve = k.h.bodies.reserveSpare
	}
	if bytes < 0 {
		k.h.bodies.free(int64(-bytes))
	} else if !reserve(int64(bytes)) {
		return false
	}
	k.held.Add(int64(bytes))
	return true
}

// read reads the events, and finds out where they go.
func (k *keenCall) read(body io.Reader) (*postback.Keen, *postback.Refusal) {
	events, refused := k.parse(body)
	if refused != nil {
		return nil, refused
	}
	k.events, _ = events.Count()
	k.Destination = events.Destination()
	return events, k.h.checkDatabases(&k.call, events)
}

func (k *keenCall) parse(sent io.Reader) (*postback.Keen, *postback.Refusal) {
	if refused := postback.CheckKeenKey(k.Key()); refused != nil {
		return nil, refused
	}
	reader := &postback.KeenReader{Arrival: k.arrival, From: k.h.caller(k.r), Random: randomUUID, Hold: k.hold}
	delete(k.r.Header, "Expect") // the first read tells the caller to continue
	body, refused, err := reader.ReadBody(sent, k.r.Header["Content-Encoding"])
	switch {
	case refused != nil:
		return nil, refused
	case err != nil:
		return nil, keenBodyRefusal(err)
	}
	events, refused := reader.Read(body, postback.IsMarkedKeen(k.r.Header))
	k.hold(-cap(body)) // nothing of it is in the events
	return events, refused
}

// randomUUID makes a UUID of version 4 (RFC 9562 section 5.4).
func randomUUID() (uuid [16]byte) {
	_, _ = rand.Read(uuid[:]) // it never fails
	uuid[6] = uuid[6]&0x0f | 4<<4
	uuid[8] = uuid[8]&0x3f | 0x80
	return uuid
}

// keenBodyRefusal says why a body could not be read. It is never 413.
func keenBodyRefusal(err error) *postback.Refusal {
	if limited, is := errors.AsType[*http.MaxBytesError](err); is { // by Caddy's request_body, before this handler
		return &postback.Refusal{
			Status: http.StatusBadRequest, Code: "invalid_request",
			Message: "the body has more than " + strconv.FormatInt(limited.Limit, 10) + " bytes, which its operator allows; send fewer events at a time",
		}
	}
	return bodyRefusal(err)
}

// answer answers when it is known of each event what becomes of it. result is what
// became of those without a fault.
func (k *keenCall) answer(events *postback.Keen, result string) {
	k.result = result
	if _, faults := events.Count(); faults > 0 {
		k.result = someRefusedResult
		k.h.warnOfFaults(&k.call, events)
	}
	body := events.AppendAnswer(nil)
	header := k.w.Header()
	header["Content-Type"] = []string{"application/json"}
	header["Cache-Control"] = []string{"no-store"}
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	k.h.begin(k.w, k.r)
	k.w.WriteHeader(http.StatusOK)
	_, _ = k.w.Write(body)
}

// send sends the events, as long as v2 takes them. Of those that go alone v2 drops no
// repeat: they go when it has taken all others.
func (k *keenCall) send(events *postback.Keen) {
	batches := events.Batches(postback.MaxBatchBytes)
	room := max(roomToSend(batches), k.roomToSendAlone(events))
	if !k.hold(room) {
		k.fail(postback.Overloaded, "")
		return
	}
	defer k.hold(-room)
	var sends errgroup.Group
	sends.SetLimit(maxKeenSends)
	for _, b := range batches {
		sends.Go(func() error { k.sendBatch(&sends, b, 1); return nil })
	}
	_ = sends.Wait()
	for to, e := range events.Alone() {
		sends.Go(func() error { k.sendAlone(to, e); return nil })
	}
	_ = sends.Wait()
}

// roomToSend is what sending holds in memory, in bytes, for the largest of the batches
// that are on the way at a time.
func roomToSend(batches []postback.KeenBatch) int {
	largest := 0
	for _, b := range batches {
		size := 0
		for _, e := range b.Events {
			size += len(e.Record)
		}
		largest = max(largest, size)
	}
	const copies = 2 // of what they are compressed to, which may be no less
	return min(len(batches), maxKeenSends) * (copies*largest + keenSendCost)
}

// roomToSendAlone is the same for the events that go alone, which go when no batch is
// on the way any more.
func (k *keenCall) roomToSendAlone(events *postback.Keen) int {
	count, largest := 0, 0
	for _, e := range events.Alone() {
		count++
		largest = max(largest, len(e.Record))
	}
	return min(count, maxKeenSends) * (largest + k.headAlone())
}

// may reports whether something may be sent now. With a spool, answered must be called
// then.
func (k *keenCall) may() bool {
	switch {
	case time.Now().After(k.until):
		k.fail(postback.EventsLate, "")
		return false
	case k.failed():
		return false
	case k.to.queue != nil && !k.to.queue.Allow(k.account):
		k.fail(postback.EventsNotTaken, "")
		return false
	}
	return true
}

func (k *keenCall) failed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refused != nil
}

// fail notes why v2 does not take all of the events. That it refuses the key says more
// than anything else.
func (k *keenCall) fail(refused *postback.Refusal, because string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refused == nil || refused.Status < http.StatusInternalServerError {
		k.refused, k.because = refused, because
	}
}

// mark notes what became of an event at v2, unless the call has ended.
func (k *keenCall) mark(e *postback.KeenEvent, fault postback.KeenFault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ended {
		e.Fault, e.Taken = fault, fault == 0
	}
}

// sendBatch sends a batch. try is 1 the first time.
func (k *keenCall) sendBatch(sends *errgroup.Group, b postback.KeenBatch, try int) {
	if !k.may() {
		return
	}
	sent := time.Now()
	to := postback.BatchGroup{Database: b.Database, Table: b.Table, Key: k.Key()}
	result, t := deliverBatch(k.to.Client, to, b.Records())
	k.note(sent, &result.Result, &t)
	switch {
	case k.failedAsWhole(&result.Result, b.Destination):
	case result.Status < http.StatusMultipleChoices:
		k.sendAgain(sends, b, &result, try)
	case len(b.Events) > 1:
		half := len(b.Events) / 2
		first, second := b, b
		first.Events, second.Events = b.Events[:half], b.Events[half:]
		if !sends.TryGo(func() error { k.sendBatch(sends, first, try); return nil }) {
			k.sendBatch(sends, first, try)
		}
		k.sendBatch(sends, second, try)
	default:
		k.refuseEvent(b.Events[0], &result.Result, b.Destination)
	}
}

// sendAgain sends the events of a batch again that v2 did not take while it took
// others.
func (k *keenCall) sendAgain(sends *errgroup.Group, b postback.KeenBatch, r *spool.BatchResult, try int) {
	again := b
	again.Events = nil
	words := ""
	for i, e := range b.Events {
		switch {
		case r.Receipts == nil && r.Status == http.StatusPartialContent: // it does not say which
		case r.Receipts == nil || r.Receipts[i].Taken:
			k.mark(e, 0)
			continue
		default:
			words = r.Receipts[i].Words
		}
		again.Events = append(again.Events, e)
	}
	switch {
	case len(again.Events) == 0:
	case try < keenTries:
		k.sendBatch(sends, again, try+1)
	default:
		left := r.Result
		left.Words = words
		k.tell(b.Destination, &left)
		k.fail(postback.EventsNotTaken, "")
	}
}

// sendAlone sends an event by Postback.
func (k *keenCall) sendAlone(to postback.Destination, e *postback.KeenEvent) {
	if !k.may() {
		return
	}
	if !k.doubt(e, true) { // it is kept by now, or its caller sends it again
		if k.to.queue != nil {
			k.to.queue.Forgo(k.account, time.Now())
		}
		return
	}
	countMaybeKept(k.unkept)
	request := k.requestOf(to, e)
	var t upstream.Trip
	sent := time.Now()
	err := k.to.Deliver(append(request.AppendHead(nil), e.Record...), &t)
	result := resultOf(&t, err)
	k.doubt(e, result.Ambiguous)
	k.note(sent, &result, &t)
	switch {
	case k.failedAsWhole(&result, to):
	case result.Status < http.StatusMultipleChoices:
		k.mark(e, 0)
	default:
		k.refuseEvent(e, &result, to)
	}
}

// requestOf is the request by which an event goes alone.
func (k *keenCall) requestOf(to postback.Destination, e *postback.KeenEvent) postback.Request {
	return postback.Request{
		Host: k.to.host, Destination: to, Credentials: k.Credentials, Forwarded: k.out.Forwarded,
		ContentType: "application/json", Body: e.Record,
	}
}

// doubt notes whether v2 may have an event of which it drops no repeat. It says no if
// the call has ended.
func (k *keenCall) doubt(e *postback.KeenEvent, unsure bool) (noted bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return false
	}
	if k.unsure == nil {
		k.unsure = map[*postback.KeenEvent]bool{}
	}
	k.unsure[e] = unsure
	return true
}

// note notes how sending something went.
func (k *keenCall) note(sent time.Time, r *spool.Result, t *upstream.Trip) {
	countRefusedKey(r.Status, k.Key())
	if k.to.queue != nil {
		k.to.answered(k.account, sent, r)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trips.Tries == 0 {
		k.trips.Tries = 1
	}
	k.trips.Tries += t.Tries - 1
	k.trips.Dialed += t.Dialed
	k.trips.Bytes += t.Bytes
	k.trips.Duration = max(k.trips.Duration, t.Duration)
	if t.Status >= k.trips.Status {
		k.trips.Status, k.trips.Words = t.Status, t.Words
	}
}

// failedAsWhole reports whether v2's answer, or that there is none, is not about single
// events. Then the call as a whole fails.
func (k *keenCall) failedAsWhole(r *spool.Result, to postback.Destination) bool {
	switch {
	case r.Status == 0:
		refused := postback.EventsNotTaken
		switch {
		case errors.Is(r.Err, upstream.ErrNoConn):
			refused = noConnection
		case upstream.IsTimeout(r.Err):
			refused = postback.EventsLate
		}
		k.fail(refused, "")
	case r.OfKey():
		k.fail(postback.KeyRefused(r.Status), upstream4xxResult)
	case r.Status < http.StatusMultipleChoices, r.OfRecords():
		return false
	default:
		k.fail(postback.EventsNotTaken, upstreamResult(r.Status))
	}
	k.tell(to, r)
	return true
}

// tell tells the operator why v2 does not take events. With a spool that is told when
// it is known whether they are kept.
func (k *keenCall) tell(to postback.Destination, r *spool.Result) {
	if k.h.Spool == nil || r.OfKey() {
		k.h.warnOfEvents(&k.call, to, r, false)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trouble == nil {
		k.trouble = &eventsTrouble{to, *r}
	}
}

// refuseEvent notes that v2 refuses an event for good. Its caller deletes it.
func (k *keenCall) refuseEvent(e *postback.KeenEvent, r *spool.Result, to postback.Destination) {
	k.mark(e, postback.KeenRefused)
	k.h.warnOfEvents(&k.call, to, r, false)
}
