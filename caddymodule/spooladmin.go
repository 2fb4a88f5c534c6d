package caddymodule

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// This file is what an operator sees of the spools, and may do to dead letters,
// over Caddy's admin API. The td-spool command is a client of it.

// The states of the gateway at /td_postback/health.
const (
	healthOK       = "ok"
	healthDegraded = "degraded" // more than 80 % full, or v2 is down
	healthRefusing = "refusing" // records that v2 does not take now are lost to the spool
)

// spoolStatus is a spool as the admin API shows it.
type spoolStatus struct {
	Spool     string        `json:"spool"`
	Available bool          `json:"available"` // false while the disk or cluster refuses records
	Full      bool          `json:"full"`      // there was no room for a record, and not much has gone since
	Bytes     int64         `json:"bytes"`
	MaxBytes  int64         `json:"max_bytes"`
	Queues    []queueStatus `json:"queues"`
}

type queueStatus struct {
	Name    string     `json:"name"`
	Records int        `json:"records"`
	Dead    int        `json:"dead"`
	Oldest  *time.Time `json:"oldest,omitempty"`
	Down    bool       `json:"upstream_down"`
}

// openKeepers returns the keepers that are in use, by their places.
func openKeepers() []*keeper {
	var all []*keeper
	keepers.Range(func(_, value any) bool {
		if k, ok := value.(*keeper); ok {
			all = append(all, k)
		}
		return true
	})
	slices.SortFunc(all, func(a, b *keeper) int { return cmp.Compare(a.place, b.place) })
	return all
}

// status says how a spool is.
func (k *keeper) status() spoolStatus {
	status := spoolStatus{Spool: k.place, Queues: []queueStatus{}}
	log := k.opened()
	if log == nil {
		return status
	}
	status.Bytes, status.MaxBytes = log.Size()
	status.Full = k.full.Load() && status.nearlyFull()
	reachable := true
	for _, name := range log.Queues() {
		depth, err := log.Depth(name) // what can be known of it, if a file cannot be read
		reachable = reachable && !errors.Is(err, spool.ErrUnavailable)
		if k.nats && err == nil { // it has a leader, so it takes records too
			k.recovered(name)
		}
		q := queueStatus{Name: name, Records: depth.Records, Dead: depth.Dead}
		if !depth.Oldest.IsZero() {
			q.Oldest = &depth.Oldest
		}
		k.mu.Lock()
		if known := k.queues[name]; known != nil {
			q.Down = known.IsOpen()
		}
		k.mu.Unlock()
		status.Queues = append(status.Queues, q)
	}
	status.Available = reachable && k.available()
	return status
}

func (s *spoolStatus) nearlyFull() bool { return s.Bytes > s.MaxBytes/10*8 }

// health sums a spool up.
func (s *spoolStatus) health() string {
	if !s.Available || s.Full {
		return healthRefusing
	}
	degraded := s.nearlyFull()
	for _, q := range s.Queues {
		degraded = degraded || q.Down
	}
	if degraded {
		return healthDegraded
	}
	return healthOK
}

// Routes returns what the admin API shows of spools. The metrics are at
// Caddy's own /metrics.
func (adminAPI) Routes() []caddy.AdminRoute {
	route := func(pattern, method string, handle func(http.ResponseWriter, *http.Request) error) caddy.AdminRoute {
		return caddy.AdminRoute{Pattern: pattern, Handler: caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if r.Method != method {
				return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("use %s", method)}
			}
			return handle(w, r)
		})}
	}
	return []caddy.AdminRoute{
		route("/td_postback/health", http.MethodGet, serveHealth),
		route("/td_postback/spool", http.MethodGet, serveSpools),
		route("/td_postback/spool/records", http.MethodGet, serveRecords),
		route("/td_postback/spool/record", http.MethodGet, serveRecord),
		route("/td_postback/spool/replay", http.MethodPost, serveReplay),
		route("/td_postback/spool/drop", http.MethodPost, serveDrop),
	}
}

// serveHealth answers 200 as long as the gateway can keep records, 503 when it
// cannot.
func serveHealth(w http.ResponseWriter, _ *http.Request) error {
	answer := struct {
		Status string            `json:"status"`
		Spools map[string]string `json:"spools"`
	}{healthOK, map[string]string{}}
	worst := []string{healthOK, healthDegraded, healthRefusing}
	for _, k := range openKeepers() {
		status := k.status()
		health := status.health()
		answer.Spools[k.place] = health
		if slices.Index(worst, health) > slices.Index(worst, answer.Status) {
			answer.Status = health
		}
	}
	code := http.StatusOK
	if answer.Status == healthRefusing {
		code = http.StatusServiceUnavailable
	}
	return writeJSON(w, code, answer)
}

func serveSpools(w http.ResponseWriter, _ *http.Request) error {
	open := openKeepers()
	all := make([]spoolStatus, 0, len(open))
	for _, k := range open {
		all = append(all, k.status())
	}
	return writeJSON(w, http.StatusOK, all)
}

// keptRecord is a record as the admin API shows it: without its body and with
// no more of the key than the account, unless it is asked for by its ID.
type keptRecord struct {
	Spool   string     `json:"spool"`
	Queue   string     `json:"queue"`
	ID      spool.ID   `json:"id"`
	Arrival time.Time  `json:"arrival"`
	Path    string     `json:"path"`
	Account string     `json:"account,omitempty"`
	Bytes   int        `json:"bytes"`
	Status  int        `json:"status,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Died    *time.Time `json:"died,omitempty"`

	Header http.Header `json:"header,omitempty"`
	Query  string      `json:"query,omitempty"`
	Body   string      `json:"body,omitempty"`
}

// maxListed is how many records are listed at a time.
const maxListed = 1000

// errNoSpool says that a request named no spool that is open.
func errNoSpool(place string) error {
	return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("spool %q: not open here", place)}
}

// selected is what a request is about.
type selected struct {
	keeper *keeper
	log    spool.Log
	queue  string
	dead   bool
	ids    []spool.ID
	after  spool.ID
	limit  int
}

// selection reads spool, queue, dead, id, after and limit. The spool may be left
// out if there is one only, and the queue likewise.
func selection(r *http.Request) (s selected, err error) {
	form := r.URL.Query()
	place := form.Get("spool")
	all := openKeepers()
	for _, k := range all {
		if k.place == place || place == "" && len(all) == 1 {
			s.keeper, s.log = k, k.opened()
		}
	}
	if s.log == nil {
		return s, errNoSpool(place)
	}
	s.queue = form.Get("queue")
	if queues := s.log.Queues(); s.queue == "" && len(queues) == 1 {
		s.queue = queues[0]
	} else if !slices.Contains(queues, s.queue) {
		return s, caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("queue %q: must be one of %q", s.queue, queues)}
	}
	s.dead = form.Get("dead") == "true"
	s.limit = maxListed
	for name, set := range map[string]func(uint64){
		"after": func(n uint64) { s.after = spool.ID(n) },
		"limit": func(n uint64) { s.limit = int(min(n, maxListed)) },
		"id":    func(n uint64) { s.ids = append(s.ids, spool.ID(n)) },
	} {
		for _, value := range form[name] {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return s, caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: fmt.Errorf("%s %q: must be a number", name, value)}
			}
			set(n)
		}
	}
	return s, nil
}

// list reads records or dead letters.
func (s *selected) list() ([]keptRecord, error) {
	list := []keptRecord{}
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
		shown.Status, shown.Reason, shown.Died = l.Status, l.Reason, &l.Died
		list = append(list, shown)
	}
	return list, err
}

// show makes a record ready to be seen: no key is in it.
func (s *selected) show(id spool.ID, record spool.Record) keptRecord {
	shown := keptRecord{Spool: s.keeper.place, Queue: s.queue, ID: id, Arrival: record.Arrival}
	request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(record.Data)))
	if err != nil {
		return shown // damaged
	}
	shown.Path, shown.Query, shown.Header = request.URL.Path, request.URL.RawQuery, withoutKeys(request.Header)
	if body, err := io.ReadAll(request.Body); err == nil {
		shown.Body, shown.Bytes = string(body), len(body)
	}
	shown.Header.Del("Authorization")
	cred := postback.Credentials{
		WriteKey:      request.Header.Get(postback.WriteKeyHeader),
		Authorization: request.Header.Get("Authorization"),
	}
	shown.Account = cred.Account()
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
		list[i].Header, list[i].Query, list[i].Body = nil, "", ""
	}
	return writeJSON(w, http.StatusOK, list)
}

func serveRecord(w http.ResponseWriter, r *http.Request) error {
	s, err := selection(r)
	if err != nil {
		return err
	}
	if len(s.ids) != 1 {
		return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: fmt.Errorf("id: must be given once")}
	}
	s.after, s.limit = s.ids[0]-1, 1
	list, err := s.list()
	if err != nil {
		return err
	}
	if len(list) == 0 || list[0].ID != s.ids[0] {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("id %d: there is no such record", s.ids[0])}
	}
	return writeJSON(w, http.StatusOK, list[0])
}

func serveReplay(w http.ResponseWriter, r *http.Request) error {
	return changeLetters(w, r, spool.Log.Replay)
}

func serveDrop(w http.ResponseWriter, r *http.Request) error {
	return changeLetters(w, r, spool.Log.Drop)
}

// changeLetters applies a change to the dead letters with the given IDs, or to
// all with all=true.
func changeLetters(w http.ResponseWriter, r *http.Request, change func(spool.Log, string, ...spool.ID) (int, error)) error {
	s, err := selection(r)
	if err != nil {
		return err
	}
	all := r.URL.Query().Get("all") == "true"
	if all == (len(s.ids) > 0) {
		return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: fmt.Errorf("give one or more id, or all=true")}
	}
	total, began := 0, time.Now()
	for more := true; more; {
		if all {
			if more, err = s.nextLetters(began); err != nil {
				return err
			}
		}
		n, err := change(s.log, s.queue, s.ids...)
		total += n
		if err = errors.Join(err, r.Context().Err()); err != nil {
			return err
		}
		more = more && all
	}
	return writeJSON(w, http.StatusOK, map[string]int{"letters": total})
}

// nextLetters selects some more dead letters, but none that died since: those
// may have been replayed before. It reports whether there may be more.
func (s *selected) nextLetters(began time.Time) (more bool, err error) {
	letters, err := s.log.Letters(s.queue, s.after, maxListed)
	s.ids = s.ids[:0]
	for _, l := range letters {
		if s.after = l.ID; !l.Died.After(began) {
			s.ids = append(s.ids, l.ID)
		}
	}
	return len(s.ids) > 0, err
}

func writeJSON(w http.ResponseWriter, status int, value any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(value)
}
