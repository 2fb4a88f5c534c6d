package caddymodule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// This file is what an operator sees of the spools, and may do to dead letters,
// over the admin API. The td-spool command is a client of it.

// openSpools returns the spools that are open, or are to be, by their places.
func openSpools() []*sharedSpool {
	var all []*sharedSpool
	sharedSpools.Range(func(_, value any) bool {
		if s, ok := value.(*sharedSpool); ok && s.Begun() {
			all = append(all, s)
		}
		return true
	})
	slices.SortFunc(all, func(a, b *sharedSpool) int { return cmp.Compare(a.Place(), b.Place()) })
	return all
}

// spoolStatuses says how the spools are that are open, by their places. All are
// asked at once: a cluster that does not answer costs a second.
func spoolStatuses() []spool.Status {
	open := openSpools()
	all := make([]spool.Status, len(open))
	var asked sync.WaitGroup
	for i, s := range open {
		asked.Go(func() { all[i] = s.Status() })
	}
	asked.Wait()
	return all
}

func serveSpools(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, spoolStatuses())
}

// keptRecord is a record as the admin API shows it, with no more of the key than
// the account and the name by which logs call it. Its head and its body are there only if it is asked for by its ID.
// The body is exactly what v2 gets, a key in it too: it is the caller's data.
type keptRecord struct {
	Spool   string     `json:"spool"`
	Queue   string     `json:"queue"`
	ID      spool.ID   `json:"id"`
	Arrival time.Time  `json:"arrival"`
	Path    string     `json:"path"`
	Account string     `json:"account,omitempty"`
	Events  int        `json:"events,omitempty"` // of a request with several
	Bytes   int        `json:"bytes"`
	Status  int        `json:"status,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Words   string     `json:"words,omitempty"` // in which v2 refused it
	Died    *time.Time `json:"died,omitempty"`

	Fingerprint string `json:"fingerprint,omitempty"` // of its key

	Header http.Header `json:"header,omitempty"`
	Query  string      `json:"query,omitempty"`
	Body   string      `json:"body,omitempty"` // if it is UTF-8

	BodyBase64 []byte `json:"body_base64,omitempty"` // if it is not
}

// maxListed is how many records are listed at a time.
const maxListed = 1000

// errNoSpool says that a request named no spool that is open.
func errNoSpool(place string, open []*sharedSpool) error {
	problem := fmt.Errorf("spool %q: not open here", place)
	switch {
	case len(open) == 0:
		problem = errors.New("the gateway has no spool: write spool into td_postback, and reload")
	case place == "":
		places := make([]string, 0, len(open))
		for _, s := range open {
			places = append(places, s.Place())
		}
		problem = fmt.Errorf("spool: is not set, and there are several: it must be one of %q", places)
	}
	return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: problem}
}

// selected is what a request is about.
type selected struct {
	place string
	log   spool.Log
	queue string
	dead  bool
	all   bool
	ids   []spool.ID
	after spool.ID
	limit int
}

// selection reads what a request is about. The spool may be left out if there is
// one only, and the queue likewise, or if no other one holds anything.
func selection(r *http.Request) (s selected, err error) {
	form := r.URL.Query()
	place := form.Get("spool")
	all := openSpools()
	var named *sharedSpool
	for _, open := range all {
		if open.Place() == place || place == "" && len(all) == 1 {
			named = open
		}
	}
	if named == nil {
		return s, errNoSpool(place, all)
	}
	s.place, s.log, s.queue = named.Place(), named.Log(), form.Get("queue")
	if s.queue == "" {
		s.queue = theQueue(named)
	}
	if queues := s.log.Queues(); !slices.Contains(queues, s.queue) {
		problem := fmt.Errorf("queue %q: must be one of %q", s.queue, queues)
		if s.queue == "" {
			problem = fmt.Errorf("queue: is not set, and several hold something: it must be one of %q", queues)
		}
		return s, caddy.APIError{HTTPStatus: http.StatusNotFound, Err: problem}
	}
	return s, s.readOptions(form)
}

// theQueue is the queue that is meant when none is named: the only one, or the only one
// that holds anything. It is empty if there are several.
func theQueue(open *sharedSpool) string {
	queues := open.Log().Queues()
	if len(queues) < 2 {
		return strings.Join(queues, "")
	}
	var holding []string
	for _, q := range open.Status().Queues {
		if q.Records+q.Dead > 0 {
			holding = append(holding, q.Name)
		}
	}
	switch len(holding) {
	case 0:
		return queues[0]
	case 1:
		return holding[0]
	default:
		return ""
	}
}

// readOptions reads dead, all, id, after and limit. What cannot be read is an
// error: a replay or a drop must not mean something else than it says.
func (s *selected) readOptions(form url.Values) error {
	for name, flag := range map[string]*bool{"dead": &s.dead, "all": &s.all} {
		switch value := form.Get(name); value {
		case "true":
			*flag = true
		case "false", "":
		default:
			return badRequest("%s %q: must be true or false", name, value)
		}
	}
	after, err := oneNumber(form, "after", 0, 0)
	if err != nil {
		return err
	}
	limit, err := oneNumber(form, "limit", 1, maxListed)
	if err != nil {
		return err
	}
	ids, err := numbers(form, "id", 1)
	for _, id := range ids {
		s.ids = append(s.ids, spool.ID(id))
	}
	s.after, s.limit = spool.ID(after), int(min(limit, maxListed))
	return err
}

// numbers reads all values of a parameter.
func numbers(form url.Values, name string, least uint64) (all []uint64, err error) {
	for _, value := range form[name] {
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n < least {
			return nil, badRequest("%s %q: must be a whole number, at least %d", name, value, least)
		}
		all = append(all, n)
	}
	return all, nil
}

// oneNumber reads a parameter that may be given once.
func oneNumber(form url.Values, name string, least, unset uint64) (uint64, error) {
	all, err := numbers(form, name, least)
	switch {
	case err != nil:
		return 0, err
	case len(all) == 0:
		return unset, nil
	case len(all) > 1:
		return 0, badRequest("%s: must be given once", name)
	}
	return all[0], nil
}

func badRequest(format string, args ...any) error {
	return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: fmt.Errorf(format, args...)}
}

// list reads records or dead letters.
func (s *selected) list() ([]keptRecord, error) {
	list := []keptRecord{}
	if s.after == math.MaxUint64 {
		return list, nil // a store would begin at 0
	}
	if !s.dead {
		entries, err := s.log.Records(s.queue, s.after, s.limit)
		for _, e := range entries {
			list = append(list, s.show(e.ID, e.Record))
		}
		return list, err
	}
	letters, err := s.log.Letters(s.queue, s.after, s.limit)
	for _, l := range letters {
		shown := s.show(l.ID, l.Record)
		shown.Status, shown.Reason, shown.Words, shown.Died = l.Status, l.Reason, l.Words, &l.Died
		list = append(list, shown)
	}
	return list, err
}

// show makes a record ready to be seen: no key is in its head.
func (s *selected) show(id spool.ID, record spool.Record) keptRecord {
	shown := keptRecord{Spool: s.place, Queue: s.queue, ID: id, Arrival: record.Arrival}
	kept, err := postback.ReadKept(record.Data) // what can be read of a damaged one
	shown.Path, shown.Query, shown.Header = postback.MaskKeys(kept.Path), postback.MaskKeys(kept.Query), withoutKeys(kept.Header)
	shown.Account, shown.Fingerprint = kept.Credentials.Account(), fingerprintOf(kept.Credentials.Key())
	if _, events, several := eventsOf(record.Data); several {
		shown.Events = len(events)
	}
	switch {
	case err != nil:
	case utf8.Valid(kept.Body):
		shown.Body, shown.Bytes = string(kept.Body), len(kept.Body)
	default:
		shown.BodyBase64, shown.Bytes = kept.Body, len(kept.Body)
	}
	return shown
}

func serveRecords(w http.ResponseWriter, r *http.Request) error {
	s, err := selection(r)
	if err != nil {
		return err
	}
	list, err := s.list()
	if err != nil && len(list) == 0 {
		return err
	}
	for i := range list {
		list[i].Header, list[i].Query, list[i].Body, list[i].BodyBase64 = nil, "", "", nil
	}
	return writeJSON(w, http.StatusOK, list)
}

func serveRecord(w http.ResponseWriter, r *http.Request) error {
	s, err := selection(r)
	if err != nil {
		return err
	}
	if len(s.ids) != 1 {
		return badRequest("id: must be given once")
	}
	record, err := s.find()
	if err != nil {
		return err
	}
	if record == nil {
		return s.notFound()
	}
	return writeJSON(w, http.StatusOK, record)
}

// notFound says that no record or dead letter has the given ID, or that it is the
// other one.
func (s *selected) notFound() error {
	absent, instead := "there is no such record that waits to be delivered", "it is a dead letter: show it with --dead, or dead=true"
	if s.dead {
		absent, instead = "there is no such dead letter", "it is no dead letter, but waits to be delivered: show it without --dead, or dead=true"
	}
	s.dead = !s.dead
	problem := absent
	if other, _ := s.find(); other != nil {
		problem = instead
	}
	return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("id %d: %s", s.ids[0], problem)}
}

// find reads the record or dead letter with the given ID, if there is one.
func (s *selected) find() (*keptRecord, error) {
	s.after, s.limit = s.ids[0]-1, 1
	list, err := s.list()
	if err != nil || len(list) == 0 || list[0].ID != s.ids[0] {
		return nil, err
	}
	return &list[0], nil
}

func serveReplay(w http.ResponseWriter, r *http.Request) error {
	return changeLetters(w, r, spool.Log.Replay, undelivered)
}

func serveDrop(w http.ResponseWriter, r *http.Request) error {
	return changeLetters(w, r, spool.Log.Drop, func(spool.Letter) bool { return true })
}

// undelivered says of a dead letter that v2 does not have it: one that it has goes
// there again only for who names it.
func undelivered(l spool.Letter) bool { return l.Reason != string(spool.Delivered) }

// changeLetters applies a change to the dead letters with the given IDs, or with
// all=true to all that are meant by that.
func changeLetters(w http.ResponseWriter, r *http.Request, change func(spool.Log, string, ...spool.ID) (int, error), meant func(spool.Letter) bool) error {
	s, err := selection(r)
	if err != nil {
		return err
	}
	if s.all == (len(s.ids) > 0) {
		return badRequest("give one or more id, or all=true")
	}
	total, err := s.change(r.Context(), change, meant)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]int{"letters": total})
}

// change applies a change to what is selected. What cannot be replayed does
// not keep others from it.
func (s *selected) change(ctx context.Context, change func(spool.Log, string, ...spool.ID) (int, error), meant func(spool.Letter) bool) (total int, err error) {
	var left *spool.NotReplayedError
	began := time.Now()
	for more := true; more; more = more && s.all {
		if s.all {
			if more, err = s.nextLetters(began, meant); err != nil {
				return total, err
			}
		}
		n, err := change(s.log, s.queue, s.ids...)
		total += n
		if some := (*spool.NotReplayedError)(nil); errors.As(err, &some) {
			left, err = left.Add(some), nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return total, err
		}
	}
	if left != nil {
		return total, fmt.Errorf("%d replayed, and %d %w", total, len(left.IDs), left)
	}
	return total, nil
}

// nextLetters selects some more dead letters that are meant, but none that died
// since: those may have been replayed before. One of the future died before the
// clock was set back. It reports whether there may be more.
func (s *selected) nextLetters(began time.Time, meant func(spool.Letter) bool) (more bool, err error) {
	letters, err := s.log.Letters(s.queue, s.after, maxListed)
	s.ids = s.ids[:0]
	for _, l := range letters {
		s.after = l.ID
		before := !l.Died.After(began) || l.Died.After(time.Now())
		if before && meant(l) {
			s.ids = append(s.ids, l.ID)
		}
		more = more || before
	}
	return more, err
}
