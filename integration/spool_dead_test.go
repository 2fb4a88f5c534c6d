package integration

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSpoolOfStrangersLetters has strangers send what v2 refuses for good, ten
// times as much as the whole spool may hold. Nobody else notices: what v2 does
// not take now is kept, health stays ok while v2 is up, and who has sent it is in
// the log.
func TestSpoolOfStrangersLetters(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	g := serveSpool(t, v2.url(), "", "mode always\n max_size 1MiB\n dead_size 256KiB\n drain_rate 100000")
	pad := strings.Repeat("x", 10_000)
	fillUp := func(round string) (kept []string) { // while v2 is away
		for {
			id := round + strconv.Itoa(len(kept))
			answer := raw(t, g.addr, post(spoolTarget, asJSON, `{"id":"`+id+`","pad":"`+pad+`"}`))
			if answer.StatusCode != 200 {
				isUnkept(t, answer, "spool_full")
				return kept
			}
			kept = append(kept, id)
		}
	}
	v2.goAway(closes)
	first := fillUp("before")
	v2.comeBack()
	v2.await(t, first...)
	g.awaitEmpty(t)

	const junk = 1000
	v2.goAway(answers("400", ""))
	for n := range junk {
		target := strings.Replace(spoolTarget, "1234", []string{"1234", "777"}[n%10/9], 1)
		answer := raw(t, g.addr, post(target, asJSON, `{"id":"junk","pad":"`+pad+`"}`))
		if answer.StatusCode != 200 && answer.StatusCode != 400 { // v2 may be asked at once when the spool is full for a moment
			t.Fatalf("record %d: %d %s", n, answer.StatusCode, answer.body)
		}
		if n%100 == 0 {
			if health, status := g.health(t); health == "refusing" || status != 200 {
				t.Fatalf("v2 is up, and health is %s %d", health, status)
			}
		}
	}
	g.awaitState(t, func(s *spoolState) bool { return s.records() == 0 })
	g.awaitHealth(t, "ok")
	s := g.state(t)
	if s.dead() < 15 || s.dead() > 26 || s.DeadBytes > s.MaxDeadBytes || s.MaxDeadBytes != 256<<10 {
		t.Errorf("dead letters: %+v", s)
	}
	g.await(t, "v2 refused records, and dead letters have no room for them", 1)
	if line := warningLine(g.text(), "v2 refused records, and dead letters have no room for them"); !strings.Contains(line, `"1234/…":`) {
		t.Errorf("the log does not say whose they were: %s", line)
	}

	// The spool has all of its room for what v2 does not take now, as soon as a file that
	// has grown with the dead letters is made smaller.
	v2.goAway(closes)
	var kept []string
	for round := 0; ; round++ { // the file may be made smaller at any time: then there is room again
		kept = append(kept, fillUp("after"+strconv.Itoa(round)+"-")...)
		health, _ := g.health(t)
		if len(kept) >= len(first)*8/10 && health == "refusing" { // v2 is down and there is no room
			break
		}
		if round == 300 {
			t.Fatalf("%d records are kept, and %d without dead letters; health is %s", len(kept), len(first), health)
		}
		time.Sleep(100 * time.Millisecond)
	}
	v2.comeBack()
	v2.await(t, kept...)
	for id, n := range v2.times {
		if n != 1 || !slices.Contains(kept, id) && !slices.Contains(first, id) {
			t.Errorf("v2 has taken %s %d times", id, n)
		}
	}
	g.awaitState(t, func(s *spoolState) bool { return s.records() == 0 })

	// After a restart it is the same.
	before := g.state(t)
	g.stop()
	g = serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", "mode always\n max_size 1MiB\n dead_size 256KiB"))
	if after := g.state(t); after.dead() != before.dead() || after.DeadBytes != before.DeadBytes {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	spoolPrints(t, g.admin, []string{"drop", "--all"}, strconv.Itoa(before.dead())+" dead letters deleted")
	if s := g.state(t); s.DeadBytes != 0 {
		t.Errorf("without any, they take %d", s.DeadBytes)
	}
}
