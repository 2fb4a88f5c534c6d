package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/spool"
)

// admin asks the admin API and decodes its answer into value. An error has the
// status that Caddy would answer with, and its text.
func admin(t *testing.T, method, target string, value any) (status int, problem string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/td_postback/"+target, nil)
	for _, route := range (adminAPI{}).Routes() {
		if route.Pattern != r.URL.Path {
			continue
		}
		w := httptest.NewRecorder()
		if err := route.Handler.ServeHTTP(w, r); err != nil {
			refused, ok := errors.AsType[caddy.APIError](err)
			if !ok {
				return http.StatusInternalServerError, err.Error()
			}
			return refused.HTTPStatus, refused.Err.Error()
		}
		text := w.Body.String()
		if strings.Contains(text, testSecret) {
			t.Errorf("%s %s shows the key: %s", method, target, text)
		}
		if w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: Content-Type %q", method, target, w.Header().Get("Content-Type"))
		}
		if value != nil {
			if err := json.Unmarshal([]byte(text), value); err != nil {
				t.Fatalf("%s %s: %v in %s", method, target, err, text)
			}
		}
		return w.Code, ""
	}
	t.Fatalf("there is no route %s", r.URL.Path)
	return 0, ""
}

// health is what /td_postback/health answers.
func (g *spooling) health(t *testing.T) (status int, health spool.Health) {
	t.Helper()
	var answer struct {
		Status spool.Health
		Spools map[string]spool.Health
	}
	status, _ = admin(t, http.MethodGet, "health", &answer)
	if len(openSpools()) > 0 && answer.Spools[g.dir] != answer.Status {
		t.Errorf("health: %+v", answer)
	}
	return status, answer.Status
}

func isHealth(t *testing.T, g *spooling, wantStatus int, want spool.Health) {
	t.Helper()
	if status, health := g.health(t); status != wantStatus || health != want {
		t.Errorf("got %d %s, want %d %s", status, health, wantStatus, want)
	}
}

// TestAdminHealth is a gateway without a spool, one whose v2 is up, then down,
// and one that has no room any more.
func TestAdminHealth(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	g.load(t, `{"handler":"td_postback","region":"us01"}`)
	isHealth(t, g, http.StatusOK, spool.HealthOK)
	var all []spool.Status
	if status, _ := admin(t, http.MethodGet, "spool", &all); status != http.StatusOK || all == nil || len(all) != 0 {
		t.Errorf("without a spool: %d %v", status, all)
	}

	g.load(t, g.handler(v2.URL, `"max_size":1048576`))
	isHealth(t, g, http.StatusOK, spool.HealthOK)
	if status := g.post(t, `{"a":1}`); status != http.StatusOK {
		t.Fatalf("got %d", status)
	}
	isHealth(t, g, http.StatusOK, spool.HealthDegraded)

	body := `{"a":"` + strings.Repeat("x", 100_000) + `"}`
	for n := 0; g.post(t, body) == http.StatusOK; n++ {
		if n > 20 {
			t.Fatal("2 MB fit into 1 MiB")
		}
	}
	isHealth(t, g, http.StatusServiceUnavailable, spool.HealthRefusing)
	if _, health := g.health(t); health != spool.HealthRefusing {
		t.Error("asking again changes the health")
	}
	if status, _ := admin(t, http.MethodGet, "spool", &all); status != http.StatusOK || len(all) != 1 || !all[0].Full || all[0].Spool != g.dir ||
		len(all[0].Queues) != 1 || all[0].Queues[0].Name != v2.URL || !all[0].Queues[0].Down || all[0].Queues[0].Oldest == nil {
		t.Errorf("got %d %+v", status, all)
	}
}

// TestAdminRecords lists and shows what v2 does not take, and then what it has
// refused, which is replayed or dropped.
func TestAdminRecords(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	g.load(t, g.handler(v2.URL))
	for n := range 4 {
		if status := g.post(t, fmt.Sprintf(`{"n":%d}`, n)); status != http.StatusOK {
			t.Fatalf("got %d", status)
		}
	}
	var list []keptRecord
	if status, _ := admin(t, http.MethodGet, "spool/records", &list); status != http.StatusOK || len(list) != 4 {
		t.Fatalf("got %d %+v", status, list)
	}
	first := list[0]
	if first.Spool != g.dir || first.Queue != v2.URL || first.Path != testEvent || first.Account != "1234/…" || first.Bytes < 7 ||
		first.Arrival.IsZero() || first.Body != "" || first.Query != "" || first.Header != nil || first.Died != nil {
		t.Errorf("listed: %+v", first)
	}
	var some []keptRecord
	if _, problem := admin(t, http.MethodGet, fmt.Sprintf("spool/records?after=%d&limit=2", first.ID), &some); len(some) != 2 || some[0].ID != list[1].ID {
		t.Errorf("two behind the first: %+v %s", some, problem)
	}
	var whole keptRecord
	if status, _ := admin(t, http.MethodGet, fmt.Sprintf("spool/record?id=%d", first.ID), &whole); status != http.StatusOK || !strings.Contains(whole.Body, `"n":0`) ||
		whole.Header.Get("Content-Type") == "" || whole.Header.Get("X-TD-Write-Key") != "" || whole.Account != "1234/…" {
		t.Errorf("got %d %+v", status, whole)
	}
	if _, _ = admin(t, http.MethodGet, "spool/records?dead=true", &some); len(some) != 0 {
		t.Errorf("dead: %+v", some)
	}

	// Nobody waits for the hour that v2 has asked for: the gateway is started
	// again. Now v2 refuses all.
	v2.status.Store(http.StatusForbidden)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	g.load(t, g.handler(v2.URL))
	log := openSpools()[0].Log()
	eventually(t, "all records are dead letters", func() bool {
		depth, err := log.Depth(v2.URL)
		return err == nil && depth.Dead == 4 && depth.Records == 0
	})
	v2.status.Store(http.StatusOK)
	if status, _ := admin(t, http.MethodGet, "spool/records?dead=true", &some); status != http.StatusOK || len(some) != 4 ||
		some[0].Status != http.StatusForbidden || some[0].Reason != string(spool.Refused) || some[0].Died == nil {
		t.Fatalf("dead: %d %+v", status, some)
	}
	if status, _ := admin(t, http.MethodGet, fmt.Sprintf("spool/record?dead=true&id=%d", some[1].ID), &whole); status != http.StatusOK || whole.Status != http.StatusForbidden {
		t.Errorf("got %d %+v", status, whole)
	}
	for _, c := range []struct {
		change string
		want   int // letters changed
		dead   int // left
	}{
		{fmt.Sprintf("drop?id=%d", some[0].ID), 1, 3},
		{fmt.Sprintf("drop?id=%d", some[0].ID), 0, 3},
		{fmt.Sprintf("replay?id=%d&id=%d&id=17", some[1].ID, some[2].ID), 2, 1},
		{"drop?all=true", 1, 0},
		{"replay?all=true", 0, 0},
	} {
		var answer struct{ Letters int }
		status, problem := admin(t, http.MethodPost, "spool/"+c.change, &answer)
		depth, err := log.Depth(v2.URL)
		if status != http.StatusOK || answer.Letters != c.want || depth.Dead != c.dead || err != nil {
			t.Errorf("%s: %d %s, %d letters, %d left, %v", c.change, status, problem, answer.Letters, depth.Dead, err)
		}
	}
	eventually(t, "v2 gets what was replayed", func() bool { return v2.taken.Load() == 2 })
}

// TestReplayAllLeavesWhatV2Has: a letter that was delivered goes to v2 again only for
// who names it.
func TestReplayAllLeavesWhatV2Has(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	g.load(t, g.handler(v2.URL))
	for range 4 {
		g.post(t, `{}`)
	}
	var list []keptRecord
	if status, problem := admin(t, http.MethodGet, "spool/records", &list); len(list) != 4 {
		t.Fatal(status, problem)
	}
	log := openSpools()[0].Log()
	for i, reason := range []string{"delivered", "refused", "delivered", "too_old"} {
		if err := log.Queue(v2.URL).Bury(spool.Entry{ID: list[i].ID}, spool.Verdict{Reason: reason}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		change string
		want   int // letters changed
		dead   int // left
	}{
		{"replay?all=true", 2, 2},
		{"replay?all=true", 0, 2},
		{fmt.Sprintf("replay?id=%d", list[0].ID), 1, 1},
		{"drop?all=true", 1, 0},
	} {
		var answer struct{ Letters int }
		status, problem := admin(t, http.MethodPost, "spool/"+c.change, &answer)
		depth, err := log.Depth(v2.URL)
		if status != http.StatusOK || answer.Letters != c.want || depth.Dead != c.dead || err != nil {
			t.Errorf("%s: %d %s, %d letters, %d left, %v", c.change, status, problem, answer.Letters, depth.Dead, err)
		}
	}
}

// inClearLog is a Log with dead letters alone, of which every tenth cannot be
// replayed.
type inClearLog struct {
	spool.Log
	letters  []spool.Letter
	replayed int
}

func (l *inClearLog) Letters(_ string, after spool.ID, limit int) ([]spool.Letter, error) {
	rest := l.letters[after:]
	return rest[:min(len(rest), limit)], nil
}

func (l *inClearLog) Replay(_ string, ids ...spool.ID) (n int, err error) {
	var left *spool.NotReplayedError
	for _, id := range ids {
		if id%10 == 0 {
			left = left.Add(&spool.NotReplayedError{IDs: []spool.ID{id}, Why: errors.New("it is in clear")})
			continue
		}
		n++
	}
	l.replayed += n
	if left != nil {
		err = left
	}
	return n, err
}

// TestReplayAllGoesOn: dead letters that cannot be replayed are named, and the others
// are replayed, also those that are listed behind them.
func TestReplayAllGoesOn(t *testing.T) {
	log := &inClearLog{}
	for id := range 2*maxListed + 100 {
		log.letters = append(log.letters, spool.Letter{ID: spool.ID(id + 1)})
	}
	s := selected{log: log, all: true}
	n, err := s.change(t.Context(), spool.Log.Replay, undelivered)
	if n != 1890 || log.replayed != n || err == nil ||
		err.Error() != "1890 replayed, and 210 not replayed: dead letter 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, and 200 more: it is in clear" {
		t.Errorf("%d, %v", n, err)
	}
}

// TestAdminShowsBodies shows bodies byte for byte, UTF-8 or not, and no key of
// the head, wherever it stands.
func TestAdminShowsBodies(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	g.load(t, g.handler(v2.URL))
	key := "1234/" + testSecret
	bodies := []string{"[\"<&>\\u2028\u2028é\\ud800\"]\n", "\x1f\x8b\x00\xff not UTF-8", "[\"" + strings.Repeat("x", 100_000) + "\"]"}
	for _, body := range bodies {
		target := "http://gateway" + testEvent + "?a=b;td_write_key=" + key + "&amp;td_write_key=" + key + "&c=d"
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{
			"X-Td-Write-Key": {key}, "Td-Write-Key": {key}, "X-Forwarded-Authorization": {"TD1 " + key},
			"Referer": {"http://x.example/#td_write_key=" + key}, "X-Own": {"kept", "by TD1 " + key},
		}
		resp, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d", resp.StatusCode)
		}
	}
	var list []keptRecord
	if status, _ := admin(t, http.MethodGet, "spool/records", &list); status != http.StatusOK || len(list) != len(bodies) {
		t.Fatalf("got %d %+v", status, list)
	}
	for n, body := range bodies {
		if list[n].Bytes != len(body) || list[n].Body != "" || list[n].BodyBase64 != nil {
			t.Errorf("listed: %+v", list[n])
		}
		var whole keptRecord
		admin(t, http.MethodGet, fmt.Sprintf("spool/record?id=%d", list[n].ID), &whole)
		if got := whole.Body + string(whole.BodyBase64); got != body || whole.Bytes != len(body) || (whole.BodyBase64 == nil) != utf8.ValidString(body) {
			t.Errorf("%.50q is shown as %.50q", body, got)
		}
		if whole.Query != "a=b;td_write_key=…&amp;td_write_key=…&c=d" || whole.Header.Get("X-Own") != "kept" ||
			whole.Header.Get("Referer") != "http://x.example/?REDACTED" {
			t.Errorf("the head is shown as %q %q", whole.Query, whole.Header)
		}
	}
}

// TestAdminRefuses asks for what is not there, or in the wrong way.
func TestAdminRefuses(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	g.load(t, `{"handler":"td_postback","region":"us01"}`)
	if status, problem := admin(t, http.MethodGet, "spool/records", nil); status != http.StatusNotFound || !strings.Contains(problem, "the gateway has no spool") {
		t.Errorf("without a spool: %d %s", status, problem)
	}
	g.load(t, g.handler(v2.URL))
	if status := g.post(t, `{"a":1}`); status != http.StatusOK {
		t.Fatalf("got %d", status)
	}
	for _, c := range []struct {
		method, target string
		status         int
		problem        string
	}{
		{http.MethodPost, "health", http.StatusMethodNotAllowed, "use GET"},
		{http.MethodPost, "spool", http.StatusMethodNotAllowed, "use GET"},
		{http.MethodPut, "spool/records", http.StatusMethodNotAllowed, "use GET"},
		{http.MethodDelete, "spool/record?id=1", http.StatusMethodNotAllowed, "use GET"},
		{http.MethodGet, "spool/replay?all=true", http.StatusMethodNotAllowed, "use POST"},
		{http.MethodGet, "spool/drop?all=true", http.StatusMethodNotAllowed, "use POST"},
		{http.MethodGet, "spool/records?spool=other", http.StatusNotFound, `spool "other": not open here`},
		{http.MethodGet, "spool/records?queue=other", http.StatusNotFound, `queue "other": must be one of`},
		{http.MethodGet, "spool/records?after=x", http.StatusBadRequest, `after "x": must be a whole number, at least 0`},
		{http.MethodGet, "spool/records?after=-1", http.StatusBadRequest, `after "-1": must be a whole number, at least 0`},
		{http.MethodGet, "spool/records?after=18446744073709551616", http.StatusBadRequest, `after "18446744073709551616": must be`},
		{http.MethodGet, "spool/records?after=1&after=2", http.StatusBadRequest, "after: must be given once"},
		{http.MethodGet, "spool/records?limit=-1", http.StatusBadRequest, `limit "-1": must be a whole number, at least 1`},
		{http.MethodGet, "spool/records?limit=0", http.StatusBadRequest, `limit "0": must be a whole number, at least 1`},
		{http.MethodGet, "spool/records?limit=", http.StatusBadRequest, `limit "": must be a whole number, at least 1`},
		{http.MethodGet, "spool/records?dead=1", http.StatusBadRequest, `dead "1": must be true or false`},
		{http.MethodGet, "spool/record?id=x", http.StatusBadRequest, `id "x": must be a whole number, at least 1`},
		{http.MethodGet, "spool/record?id=0", http.StatusBadRequest, `id "0": must be a whole number, at least 1`},
		{http.MethodGet, "spool/record?id=-1", http.StatusBadRequest, `id "-1": must be a whole number, at least 1`},
		{http.MethodGet, "spool/record?id=18446744073709551615", http.StatusNotFound, "id 18446744073709551615: there is no such record"},
		{http.MethodGet, "spool/record", http.StatusBadRequest, "id: must be given once"},
		{http.MethodGet, "spool/record?id=1&id=2", http.StatusBadRequest, "id: must be given once"},
		{http.MethodGet, "spool/record?id=17", http.StatusNotFound, "id 17: there is no such record"},
		{http.MethodGet, "spool/record?id=17&dead=true", http.StatusNotFound, "id 17: there is no such dead letter"},
		{http.MethodPost, "spool/replay", http.StatusBadRequest, "give one or more id, or all=true"},
		{http.MethodPost, "spool/drop?id=1&all=true", http.StatusBadRequest, "give one or more id, or all=true"},
		{http.MethodPost, "spool/drop?id=x", http.StatusBadRequest, `id "x": must be a whole number`},
		{http.MethodPost, "spool/drop?id=0", http.StatusBadRequest, `id "0": must be a whole number`},
		{http.MethodPost, "spool/drop?all=1", http.StatusBadRequest, `all "1": must be true or false`},
	} {
		status, problem := admin(t, c.method, c.target, nil)
		if status != c.status || !strings.Contains(problem, c.problem) {
			t.Errorf("%s %s: %d %s", c.method, c.target, status, problem)
		}
	}
	named := "spool/records?spool=" + url.QueryEscape(g.dir) + "&queue=" + url.QueryEscape(v2.URL)
	var list []keptRecord
	if status, problem := admin(t, http.MethodGet, named, &list); status != http.StatusOK || len(list) != 1 {
		t.Errorf("by their names: %d %s, %d records", status, problem, len(list))
	}
	// Nothing is behind the last ID that there can be.
	for _, dead := range []string{"", "&dead=true"} {
		target := "spool/records?after=18446744073709551615" + dead
		if status, problem := admin(t, http.MethodGet, target, &list); status != http.StatusOK || len(list) != 0 {
			t.Errorf("%s: %d %s, %d records", target, status, problem, len(list))
		}
	}
	another := g.dir + "-2"
	t.Cleanup(func() { _ = os.RemoveAll(another) })
	g.load(t, g.handler(v2.URL), strings.Replace(g.handler(v2.URL), strconv.Quote(g.dir), strconv.Quote(another), 1))
	if status, problem := admin(t, http.MethodGet, "spool/records", nil); status != http.StatusNotFound || !strings.Contains(problem, "spool: is not set, and there are several: it must be one of") || !strings.Contains(problem, another) {
		t.Errorf("of two spools: %d %s", status, problem)
	}
}

// lettersLog is a Log that has some dead letters.
type lettersLog struct {
	spool.Log
	letters []spool.Letter
}

func (l lettersLog) Letters(string, spool.ID, int) ([]spool.Letter, error) { return l.letters, nil }

// TestNextLetters: what died since a command began may have been replayed by it.
// What died in the future, before the clock was set back, has not.
func TestNextLetters(t *testing.T) {
	began := time.Now().Add(-time.Minute)
	v2Has := spool.Verdict{Reason: "delivered"}
	for _, c := range []struct {
		letters []spool.Letter
		want    []spool.ID
		more    bool
	}{
		{[]spool.Letter{{ID: 1, Died: began.Add(-time.Hour)}, {ID: 2, Died: began.Add(time.Second)}, {ID: 3, Died: time.Now().Add(time.Hour)}}, []spool.ID{1, 3}, true},
		{[]spool.Letter{{ID: 1, Died: began.Add(-time.Hour), Verdict: v2Has}}, nil, true}, // others may be behind it
		{[]spool.Letter{{ID: 1, Died: began.Add(time.Second), Verdict: v2Has}}, nil, false},
		{nil, nil, false},
	} {
		s := selected{log: lettersLog{letters: c.letters}}
		if more, err := s.nextLetters(began, undelivered); err != nil || more != c.more || !slices.Equal(s.ids, c.want) {
			t.Errorf("%v: got %v, %v, %v", c.letters, s.ids, more, err)
		}
	}
}
