package integration

import (
	"bytes"
	"image"
	"image/png"
	"math"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/console"
)

// This file takes pictures of the console: of a day in a migration, as README has it, and
// of a bad night.

// pictureTime is when the pictures are taken, as far as the page knows.
var pictureTime = time.Date(2026, time.November, 28, 3, 12, 0, 0, time.UTC)

// aDay is the page of a gateway in the middle of a migration: all is well.
func aDay() *console.Page {
	ago := func(d time.Duration) time.Time { return pictureTime.Add(-d) }
	p := &console.Page{
		Now: pictureTime, Gateway: "gw-1", Version: "v1.18.0", Started: ago(9*24*time.Hour + 4*time.Hour), Token: strings.Repeat("0", 64),
		Recent: aQuarter(0),
		Hosts: []console.Host{
			{Name: "us01.records.in.treasuredata.com", Lane: "v2", Circuit: console.CircuitClosed, Last: &console.Failure{Time: ago(5 * time.Hour), Status: 503, Words: "Service Unavailable"}},
			{Name: "in.treasuredata.com", Lane: "legacy", Circuit: console.CircuitClosed},
		},
		Books: []console.Book{{Surface: "post", Received: 48_215_007, Forwarded: 48_211_946, Spooled: 2_911, Refused: 150}, {Surface: "pixel", Received: 9_120_344, Forwarded: 9_120_302, Refused: 42}, {Surface: "js", Received: 1_204_118, Forwarded: 1_204_118}},
		Spools: []console.Spool{{Place: "/var/lib/td-postback/spool", Health: console.HealthOK, Available: true, Bytes: 1 << 20, MaxBytes: 10 << 30, MaxDead: 2560 << 20,
			Queues: []console.Queue{{Name: "https://us01.records.in.treasuredata.com"}, {Name: "https://in.treasuredata.com"}}}},
		Plan: &console.Plan{
			Revision: 41, Stick: "client",
			Rules:   []console.Rule{{Target: "*.*", Asked: 0, Real: new(console.Percent(0)), Events: 61_204}, {Target: "shop.*", Asked: 2500, Real: new(console.Percent(2483)), Events: 118_310}, {Target: "shop.orders", Asked: 10000, Real: new(console.Percent(10000)), Events: 84_022}, {Target: "shop.carts", Account: "1234", Asked: 5000, Real: new(console.Percent(5012)), Events: 40_117}},
			History: []console.Change{{Revision: 41, Time: ago(42 * time.Minute), Who: "mina@ops-2", What: "share (shop.*: 25 % to v2, was 10 %)"}, {Revision: 40, Time: ago(26 * time.Hour), Who: "mina@ops-2", Note: "a day at 100 %, nothing refused", What: "share (shop.orders: 100 % to v2, was 50 %)", Undoable: true}},
		},
		Audit: &console.Audit{Verdict: "ready with changes", Ready: true, Reason: "3 of 14 callers send what the gateway makes fit for v2: they can be moved, and need the gateway.", Since: 24 * time.Hour, Findings: []console.AuditFinding{
			{Finding: console.Finding{Name: "from_query", Kind: "changed", Events: 921_400, Advice: "Send the record as one JSON object, as the body of a POST: v2 takes none from a query."}, Callers: 2},
			{Finding: console.Finding{Name: "key_in_url", Kind: "changed", Events: 921_400, Advice: "Send the write key in the header X-TD-Write-Key: v2 reads no key in the URL, and answers 200 without one."}, Callers: 3},
		}},
		Report:   &console.Report{Time: pictureTime, MaxRows: 10_000},
		Refusals: []console.RefusalKind{{Code: "missing_write_key", Lane: "v2", Recent: 0, Total: 150, Example: `POST {"id":string,"price":number}`, Do: "Send the write key in the header X-TD-Write-Key."}},
	}
	addCallers(p.Report, ago)
	for i, kind := range []string{"post", "post", "pixel", "post", "js"} {
		p.Calls = append(p.Calls, console.Call{Time: ago(time.Duration(i*230) * time.Millisecond), Table: []string{"shop.orders", "shop.carts", "shop.views"}[i%3], Surface: kind, Key: "1234/#9f3a1c20b7", Lane: []string{"v2", "legacy"}[i%2], Result: "forwarded", Status: 200, Took: time.Duration(11+3*i) * time.Millisecond})
	}
	return p
}

// aQuarter is a quarter of an hour in which a share was raised. Of a bad one, v2 is away for
// the last minutes.
func aQuarter(bad time.Duration) *console.Recent {
	h := new(console.History)
	now := &console.Reading{At: pictureTime, Times: map[string]console.Times{}}
	var v2, legacy, kept, refused, lost float64
	for ago := console.Span; ago >= 0; ago -= console.Step {
		wave := 30 + 6*math.Sin(ago.Minutes()*1.3) + 3*math.Cos(ago.Minutes()*4)
		part := 0.35
		if ago < 9*time.Minute {
			part = 0.6
		}
		step := console.Step.Seconds() * wave
		legacy += step * (1 - part)
		if down := ago < bad; down {
			kept, lost = kept+step*part*0.9, lost+step*part*0.1
		} else {
			v2 += step * part
		}
		refused += step * 0.002
		r := console.Reading{At: pictureTime.Add(-ago), Kept: uint64(kept), Times: map[string]console.Times{
			"v2": answerTimes(v2, 0.012), "legacy": answerTimes(legacy, 0.034)}, Totals: []console.Total{
			{Lane: "v2", Result: "forwarded", Kind: console.ToV2, Count: uint64(v2)}, {Lane: "legacy", Result: "forwarded", Kind: console.ToLegacy, Count: uint64(legacy)},
			{Lane: "v2", Result: "spooled", Kind: console.Kept, Count: uint64(kept)}, {Lane: "v2", Result: "upstream_unreachable", Kind: console.Lost, Count: uint64(lost)}}}
		if bad > 0 {
			r.Totals = append(r.Totals, console.Total{Lane: "v2", Result: "missing_write_key", Kind: console.Refused, Count: uint64(refused)})
		}
		if *now = r; ago > 0 {
			h.Add(&r)
		}
	}
	return h.Recent(now)
}

func answerTimes(all, half float64) console.Times {
	return console.Times{Bounds: []float64{half / 2, half * 2, half * 8}, Counts: []uint64{uint64(all * 0.2), uint64(all * 0.9), uint64(all)}, All: uint64(all)}
}

// addCallers adds tables, keys and callers.
func addCallers(r *console.Report, ago func(time.Duration) time.Time) {
	for i, name := range []string{"shop.orders", "shop.carts", "shop.views", "app.sessions", "ads.clicks"} {
		n := uint64(4_100_000 >> (2 * i))
		findings := [][]string{nil, {"key_in_url"}, {"from_query", "key_in_url"}, nil, nil}[i]
		r.Tables.Rows = append(r.Tables.Rows, console.Table{Name: name, Asked: new([]console.Percent{10000, 5000, 2500, 0, 0}[i]), Accounts: i == 1, Real: new([]console.Percent{10000, 5012, 2483, 0, 0}[i]), Events24h: n / 7, Events7d: n, Callers: 5 - i, Left: 4 - i, Findings: findings, LastSeen: ago(time.Duration(i) * 7 * time.Second)})
		r.Keys.Rows = append(r.Keys.Rows, console.Key{Name: []string{"1234/#9f3a1c20b7", "1234/#51d0c2aa09", "5678/#0b77e4f1c3", "5678/#d91a6e0f44", "90/#77aa10be5c"}[i], Events24h: n / 7, Events7d: n, Tables: 3, Callers: 4, Findings: findings, LastSeen: ago(time.Duration(i) * 9 * time.Second)})
		r.Callers.Rows = append(r.Callers.Rows, console.Caller{ID: name, Key: r.Keys.Rows[i].Name, Table: name, Surface: []string{"post", "post", "pixel", "js", "get"}[i], Agent: []string{"python-requests", "okhttp", "Chrome", "Safari", "curl"}[i], Source: []string{"203.0.113.0/24", "198.51.100.0/24", "https://shop.example", "https://app.example", "192.0.2.0/24"}[i],
			State: []string{"ready to leave the gateway", "left", "left", "left", "gone"}[i], FirstSeen: ago(9 * 24 * time.Hour), LastSeen: ago(time.Duration(i) * 11 * time.Second), Events24h: n / 7, Events7d: n, Events: n,
			Lanes: []console.Count{{Name: "v2", Count: n}}, Results: []console.Count{{Name: "forwarded", Count: n}}, Curl: "curl -X POST 'https://us01.records.in.treasuredata.com/postback/v3/event/shop/orders'", Tag: "<script>fetch(…)</script>",
			Examples: []console.Example{{Request: `POST {"id":string,"price":number}`}}})
		for _, finding := range r.Keys.Rows[i].Findings {
			r.Callers.Rows[i].Findings = append(r.Callers.Rows[i].Findings, console.Finding{Name: finding, Kind: "changed", Events: n, Advice: "Send the write key in the header X-TD-Write-Key."})
		}
	}
}

// aNight is the same when v2 is down, the spool nearly full, and a gateway silent.
func aNight() *console.Page {
	p := aDay()
	p.Recent = aQuarter(4 * time.Minute)
	p.Hosts[0].Circuit, p.Hosts[0].Last = console.CircuitOpen, &console.Failure{Time: pictureTime.Add(-8 * time.Second), Words: "dial tcp: lookup us01.records.in.treasuredata.com on 10.0.0.2:53: no such host"}
	s := &p.Spools[0]
	s.Health, s.Bytes, s.DeadBytes = console.HealthDegraded, 9<<30, 300<<20
	s.Queues[0] = console.Queue{Name: s.Queues[0].Name, Records: 4_120_331, Dead: 12, Oldest: pictureTime.Add(-27 * time.Hour), Down: true, Paused: 2}
	p.Plan.Gateways = []console.Gateway{{Name: "gw-1:/var/lib/td-postback/plan", Self: true, Revision: 41, Heard: pictureTime}, {Name: "gw-2:/var/lib/td-postback/plan", Revision: 40, Heard: pictureTime.Add(-time.Minute), Why: "not heard of for 1m0s: if it runs, it is cut off, and goes on with revision 40 until it is rolled back by itself"}}
	p.Audit.Verdict, p.Audit.Ready, p.Audit.Reason = "not ready", false, "1 of 14 callers send what is refused on the way to v2, and lost when they are moved."
	p.Books[0].Lost = 1_204
	p.Refusals = append([]console.RefusalKind{{Code: "upstream_unreachable", Lane: "v2", Recent: 1_204, Total: 1_204, Do: "See above what the host says, and the log."}}, p.Refusals...)
	return p
}

// pictures serves the pages as the console does.
func pictures(t *testing.T) (addr string) {
	t.Helper()
	pages := map[string]func() *console.Page{"/day": aDay, "/night": aNight}
	return listen(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // loopback
		view := console.ParseView(r.URL.Query())
		switch view.Part {
		case console.PartStyle:
			w.Header().Set("Content-Type", "text/css")
			_, _ = w.Write(console.Style)
		case console.PartScript, console.PartIcon:
			w.Header().Set("Content-Type", "text/javascript")
		default:
			p := pages[r.URL.Path]()
			if i := p.Report.Find(view.Caller); i >= 0 {
				p.Caller = &p.Report.Callers.Rows[i]
			}
			if view.Trial != nil {
				p.Trial = &console.Trial{Rule: view.Trial.Rule, Percent: view.Trial.Percent, Revision: 41, Callers: 3, OfCallers: 14, ToV2: 21_304, Of: 118_310}
			}
			if view.Dead != nil {
				p.Letters = &console.Letters{Spool: view.Dead.Spool, Queue: view.Dead.Queue, List: []console.Letter{{ID: 7, Path: "/postback/v3/event/shop/orders", Key: "1234/#9f3a1c20b7", Arrived: pictureTime, Died: pictureTime, Bytes: 120, Status: 400, Reason: "refused", Words: "no object", Example: `POST {"a":string}`}}, Next: 7}
			}
			out, _ := console.Render(p, &view)
			_, _ = w.Write(out)
		}
	})})
}

// TestConsolePictures takes pictures of both pages at three widths, in light and dark: look
// at them after a change of the page (go test -artifacts). One of them is README's, which
// is no larger than a page should load.
func TestConsolePictures(t *testing.T) {
	t.Parallel()
	addr := pictures(t)
	b := openTab(t, startChromium(t))
	for _, scheme := range []string{"light", "dark"} {
		b.prefers(t, "prefers-color-scheme", scheme)
		for _, page := range []string{"day", "night"} {
			b.open(t, "http://"+addr+"/"+page)
			for _, width := range []int64{320, 768, 1280} {
				b.shoot(t, page+"-"+scheme, width, 0)
			}
		}
		b.open(t, "http://"+addr+"/night?dead=/var/lib/td-postback/spool&queue=https://us01.records.in.treasuredata.com")
		b.shoot(t, "letters-"+scheme, 320, 0)
	}
	b.prefers(t, "prefers-color-scheme", "light")
	b.open(t, "http://"+addr+"/day")
	picture := b.shoot(t, "console", 1280, 920)
	const most = 150_000
	shown, err := os.ReadFile("../docs/console.png")
	if err != nil {
		t.Fatal(err)
	}
	for name, png := range map[string][]byte{"the picture": picture, "docs/console.png": shown} {
		if size, err := pngSize(png); err != nil || size != (image.Point{1280, 920}) || len(png) > most {
			t.Errorf("%s: %v, %d bytes, %v", name, size, len(png), err)
		}
	}
}

func pngSize(picture []byte) (image.Point, error) {
	config, err := png.DecodeConfig(bytes.NewReader(picture))
	return image.Point{config.Width, config.Height}, err
}
