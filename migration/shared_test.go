package migration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// board is a cluster in memory, in which several gateways have a plan.
type board struct {
	mu      sync.Mutex
	text    []byte
	number  uint64
	hearers map[*seat]func([]byte)

	fail   error // of what is written; nil if all is well
	stored bool  // though it is stored
}

// seat is a gateway's connection to a board.
type seat struct {
	*board
	cut, deaf bool
}

func newBoard() *board { return &board{hearers: map[*seat]func([]byte){}} }

func (s *seat) Read(context.Context) ([]byte, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return nil, 0, ErrAway
	}
	if s.text == nil {
		return nil, 0, nil
	}
	return s.text, s.number, nil
}

func (s *seat) Write(_ context.Context, text []byte, number uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cut:
		return ErrAway
	case s.fail != nil && !s.stored:
		return s.fail
	case s.text != nil && s.number != number || s.text == nil && number != 0:
		return ErrOutdated
	}
	s.text, s.number = text, s.number+1
	return s.fail
}

func (s *seat) Say(text []byte) {
	s.mu.Lock()
	var hearing []func([]byte)
	for other, hear := range s.hearers {
		if !s.cut && !other.cut && !other.deaf {
			hearing = append(hearing, hear)
		}
	}
	s.mu.Unlock()
	for _, hear := range hearing {
		hear(text)
	}
}

func (s *seat) Hear(hear func([]byte)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hearers[s] = hear
	return nil
}

func (s *seat) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.hearers, s)
	return nil
}

func (s *seat) setCut(cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = cut
}

// plan is the plan on the board.
func (b *board) plan(t *testing.T) *planState {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	p, err := decodeState(b.text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// member is a gateway that shares a plan.
type member struct {
	*Steering
	seat *seat
}

// join opens a gateway's plan and has it share.
func (b *board) join(t *testing.T, name, path string) *member {
	t.Helper()
	s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{s, &seat{board: b}}
	if err := s.Join(m.seat, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return m
}

// three are three gateways that share a plan, in which half of all goes to v2.
func three(t *testing.T) (b *board, all []*member) {
	t.Helper()
	b = newBoard()
	for i := range 3 {
		all = append(all, b.join(t, fmt.Sprint("gw", i+1), filepath.Join(t.TempDir(), "plan.db")))
	}
	synctest.Wait()
	must(t, all[0].Steering, "share *.* 50")
	return b, all
}

func laggards(out *Outcome) string {
	texts := make([]string, 0, len(out.Lagging))
	for _, g := range out.Lagging {
		texts = append(texts, g.Name+": "+g.Why)
	}
	return strings.Join(texts, "; ")
}

// A change holds at all gateways when it is answered, and each says so.
func TestChangeOfAllGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := three(t)
		for i, command := range []string{"share a.b 5", "rollback", "share a.b 6", "resume", "undo", "unset a.b"} {
			by := all[i%3]
			began := time.Now()
			out, err := do(by.Steering, based(by.Steering), command)
			if err != nil || len(out.Lagging) > 0 || !slices.Equal(out.Followed, []string{"gw1", "gw2", "gw3"}) {
				t.Fatalf("%s: %+v, %v", command, out, err)
			}
			if took := time.Since(began); took > retryPause {
				t.Errorf("%s took %s", command, took)
			}
			for _, m := range all {
				if says(m.Steering) != says(by.Steering) || m.Plan().held != by.Plan().held {
					t.Errorf("%s: %s and %s", command, says(m.Steering), says(by.Steering))
				}
			}
		}
		if got := all[2].History(); len(got) != 7 {
			t.Error(got)
		}
	})
}

// Of two changes of the same plan at two gateways, one is made, and the other hears of it.
func TestConflictOfGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := three(t)
		var wg sync.WaitGroup
		errs := make([]error, 3)
		orders := []Order{based(all[0].Steering), based(all[1].Steering), based(all[2].Steering)}
		for i, m := range all {
			wg.Go(func() { _, errs[i] = do(m.Steering, orders[i], fmt.Sprint("share a.b ", i+1)) })
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			conflict, ok := errors.AsType[*ConflictError](err)
			if err == nil {
				made++
			} else if !ok || conflict.Revision != 2 || len(conflict.Changes) != 1 || conflict.Changes[0].Rules[0].String() != "a.b" {
				t.Error(err)
			}
		}
		if made != 1 {
			t.Errorf("%d were made", made)
		}
	})
}

// A gateway that is cut off goes on with its plan. Rolled back by itself, it stays so,
// whatever the others do meanwhile and later, through a restart too, until somebody
// resumes it by itself.
func TestGatewayThatIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := three(t)
		lost := all[2]
		lost.seat.setCut(true)
		time.Sleep(pollEvery + time.Second)
		expectSays(t, lost.Steering, "1: *.* 50")
		if err := lost.Trouble(); !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "goes on with revision 1, with these shares to v2: *.* 50 %") {
			t.Error(err)
		}
		if _, err := do(lost.Steering, based(lost.Steering), "share *.* 60"); !errors.As(err, new(*NotSavedError)) {
			t.Error(err)
		}
		out, err := lost.Rollback(Order{Time: start, Who: "ann@desk", Local: true})
		if err != nil || out.Unsaved != "" || out.Change == nil || !lost.Plan().held {
			t.Fatal(out, err)
		}
		out, err = do(all[0].Steering, based(all[0].Steering), "share *.* 100")
		if err != nil || !slices.Equal(out.Followed, []string{"gw1", "gw2"}) || !strings.HasPrefix(laggards(out), "gw3: it has not followed yet") && !strings.HasPrefix(laggards(out), "gw3: not heard of for ") {
			t.Fatalf("%+v, %v", out, err)
		}
		must(t, all[1].Steering, "rollback", "resume")
		lost.seat.setCut(false)
		time.Sleep(pollEvery + time.Second)
		expectSays(t, lost.Steering, "4: *.* 100")
		if !lost.Plan().held || lost.Status().Local == nil || lost.Trouble() != nil {
			t.Error("the others have resumed it", lost.Trouble())
		}
		out, err = do(all[0].Steering, based(all[0].Steering), "share a.b 1")
		if err != nil || laggards(out) != "gw3: it is rolled back by itself, until it is resumed by itself" {
			t.Error(laggards(out), err)
		}
		path := lost.cfg.Path
		if err := lost.Close(); err != nil {
			t.Fatal(err)
		}
		lost = b.join(t, "gw3", path)
		if !lost.Plan().held || all[0].Plan().held {
			t.Error("a restart has resumed it")
		}
		if _, err = do(all[0].Steering, based(all[0].Steering), "rollback"); err != nil {
			t.Error(err)
		}
		if _, err = do(all[0].Steering, based(all[0].Steering), "resume"); err != nil || !lost.Plan().held {
			t.Error("the others have resumed it", err)
		}
		o := based(lost.Steering)
		o.Local = true
		if out, err = lost.Resume(o); err != nil || out.Change == nil || lost.Plan().held || lost.Status().Local != nil {
			t.Error(out, err)
		}
		synctest.Wait()
		if out, err = do(all[0].Steering, based(all[0].Steering), "share a.b 2"); err != nil || len(out.Lagging) > 0 {
			t.Error(laggards(out), err)
		}
	})
}

// A rollback of all gateways at one that is cut off: it holds there at once, through a
// restart too, the command names the others, and it holds at all when the cluster is
// back. Then a resume lifts it at all.
func TestRollbackWithoutTheCluster(t *testing.T) {
	for name, restart := range map[string]bool{"it runs": false, "it is started again": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { rollbackWithoutTheCluster(t, restart) })
		})
	}
}

func rollbackWithoutTheCluster(t *testing.T, restart bool) {
	b, all := three(t)
	lost := all[0]
	lost.seat.setCut(true)
	out, err := lost.Rollback(Order{Time: start, Who: "ann@desk", Note: "v2 is slow"})
	if err != nil || !lost.Plan().held || !slices.Equal(out.Followed, []string{"gw1"}) || len(out.Lagging) != 2 || out.Change == nil {
		t.Fatalf("%+v, %v", out, err)
	}
	if want := "the rollback is in force at this gateway alone"; !strings.HasPrefix(out.Unsaved, want) || !strings.HasSuffix(out.Unsaved, "a restart does not lift it") {
		t.Error(out.Unsaved)
	}
	if want := "gw2: it has not heard of the rollback, and goes on with revision 1; gw3: it has not heard of the rollback, and goes on with revision 1"; laggards(out) != want {
		t.Error(laggards(out))
	}
	if all[1].Plan().held {
		t.Error("the others have heard of it")
	}
	if restart {
		path := lost.cfg.Path
		if err := lost.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		lost = &member{s, &seat{board: b, cut: true}}
		if err := s.Join(lost.seat, "gw1"); !errors.Is(err, ErrAway) {
			t.Fatal(err)
		}
	}
	if !lost.Plan().held {
		t.Error("lifted")
	}
	lost.seat.setCut(false)
	time.Sleep(2 * pollEvery)
	for _, m := range append(all[1:], lost) {
		expectSays(t, m.Steering, "2: held *.* 50")
		if h := m.Status().Hold; h == nil || h.Who != "ann@desk" || h.Note != "v2 is slow" || m.Status().Local != nil || m.Trouble() != nil {
			t.Errorf("%+v, %v", m.Status(), m.Trouble())
		}
	}
	must(t, all[1].Steering, "resume")
	if lost.Plan().held {
		t.Error("it is not lifted")
	}
}

// A note that got longer when it was made fit for the history is none that is too long:
// a rollback with it holds at all gateways, also when the cluster takes it later.
func TestNoteThatGotLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		note := strings.Repeat("v2\n", MaxNote/3)
		want := strings.ReplaceAll(note, "\n", "\ufffd")
		_, all := three(t)
		if out, err := all[0].Rollback(Order{Time: start, Who: "ann@desk", Note: note}); err != nil || len(out.Lagging) > 0 || out.Change.Note != want {
			t.Fatalf("%+v, %v", out, err)
		}
		must(t, all[0].Steering, "resume")
		all[0].seat.setCut(true)
		if _, err := all[0].Rollback(Order{Time: start, Who: "ann@desk", Note: note}); err != nil {
			t.Fatal(err)
		}
		all[0].seat.setCut(false)
		time.Sleep(2 * pollEvery)
		for _, m := range all {
			if h := m.Status().Hold; h == nil || h.Note != want || m.Status().Local != nil {
				t.Errorf("%+v", m.Status())
			}
		}
	})
}

// What only one gateway knows holds before anybody has made a plan, too.
func TestLocalHoldWithoutAPlan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	open := func() *Steering {
		s, err := OpenPlan(PlanConfig{Start: V2, Path: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := open()
	if out, err := s.Rollback(Order{Time: start, Local: true}); err != nil || out.Unsaved != "" {
		t.Fatal(out, err)
	}
	s.Configure(V2, StickKey)
	if err := s.Close(); err != nil || !s.Plan().held {
		t.Fatal(err)
	}
	if s = open(); !s.Plan().held || s.Status().Revision != 0 {
		t.Error("a restart lifts it")
	}
	o := based(s)
	o.Local = true
	if out, err := s.Resume(o); err != nil || out.Change == nil {
		t.Fatal(out, err)
	}
	if out, err := s.Resume(o); err != nil || out.Change != nil {
		t.Fatal(out, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s = open(); s.Plan().held {
		t.Error("a restart lays it")
	}
	if _, err := s.Share(Order{Base: new(uint64), Local: true}, DefaultRule, 1); !errors.As(err, new(*InvalidError)) {
		t.Error(err)
	}
}

// A change that the cluster does not take is refused, and changes nothing. Whether it was
// taken all the same shows later; a repeat finds out.
func TestChangeThatTheClusterDoesNotTake(t *testing.T) {
	silent := errors.New("the servers do not answer")
	synctest.Test(t, func(t *testing.T) {
		b, all := three(t)
		b.mu.Lock()
		b.fail = silent
		b.mu.Unlock()
		began := time.Now()
		_, err := do(all[0].Steering, based(all[0].Steering), "share *.* 60")
		if e, ok := errors.AsType[*NotSavedError](err); !ok || !e.Unsure || !strings.Contains(err.Error(), "look at the plan again") {
			t.Error(err)
		}
		if took := time.Since(began); took < changePatience || took > changePatience+time.Second {
			t.Error(took)
		}
		expectSays(t, all[0].Steering, "1: *.* 50")
		out, err := all[1].Rollback(Order{Time: start})
		if err != nil || !all[1].Plan().held || !strings.HasPrefix(out.Unsaved, "the rollback is in force at this gateway alone") {
			t.Error(out, err)
		}
		b.mu.Lock()
		b.fail = nil
		b.mu.Unlock()
		time.Sleep(2 * pollEvery)
		for _, m := range all {
			expectSays(t, m.Steering, "2: held *.* 50")
		}
	})
	synctest.Test(t, func(t *testing.T) { // it is taken, but the answer is lost
		b, all := three(t)
		b.mu.Lock()
		b.fail, b.stored = silent, true
		b.mu.Unlock()
		for _, command := range []string{"share *.* 60", "rollback", "resume"} {
			if out, err := do(all[0].Steering, based(all[0].Steering), command); err != nil || len(out.Lagging) > 0 {
				t.Errorf("%s: %+v, %v", command, out, err)
			}
		}
		expectSays(t, all[2].Steering, "4: *.* 60")
	})
}

// What a gateway's file says, and what the cluster: who is newer counts, if the one came
// of the other.
func TestFileAndCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := three(t)
		path := all[2].cfg.Path
		if err := all[2].Close(); err != nil {
			t.Fatal(err)
		}
		backup, number := b.text, b.number
		must(t, all[0].Steering, "share *.* 70")
		older := b.join(t, "gw3", path)
		expectSays(t, older.Steering, "2: *.* 70")
		must(t, all[0].Steering, "rollback")
		if err := older.Close(); err != nil {
			t.Fatal(err)
		}

		b.mu.Lock() // a backup of the stream is put back
		b.text, b.number = backup, number
		b.mu.Unlock()
		time.Sleep(pollEvery + time.Second)
		if got := b.plan(t); got.Revision != 3 || got.Hold == nil {
			t.Error("the gateways do not put it right", got)
		}
		for _, m := range all[:2] {
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}

		b.mu.Lock() // the stream is purged, and a gateway comes with a file of before
		b.text, b.number = nil, number+10
		b.mu.Unlock()
		newer := b.join(t, "gw3", path)
		if got := b.plan(t); got.Revision != 3 || got.Hold == nil || newer.Trouble() != nil {
			t.Error(got, newer.Trouble())
		}
		fresh := b.join(t, "gw4", filepath.Join(t.TempDir(), "plan.db"))
		expectSays(t, fresh.Steering, "3: held *.* 70")
	})
}

// A gateway whose plan has nothing to do with that in the cluster goes on with its own,
// but for a rollback of all, until somebody has it take up theirs.
func TestPlanOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := three(t)
		path := filepath.Join(t.TempDir(), "plan.db")
		own := openPlan(t, path)
		must(t, own, "share x.y 7", "share x.y 8", "share x.y 9")
		seat := &seat{board: b}
		if err := own.Join(seat, "gw4"); err != nil {
			t.Fatal(err)
		}
		expectSays(t, own, "3: *.* 0, x.y 9")
		if err := own.Trouble(); err == nil || !strings.Contains(err.Error(), "has nothing to do with that of the others, revision 1") {
			t.Error(err)
		}
		if _, err := do(own, based(own), "share x.y 10"); !errors.As(err, new(*InvalidError)) {
			t.Error(err)
		}
		synctest.Wait()
		out, err := do(all[0].Steering, based(all[0].Steering), "share *.* 60")
		if err != nil || laggards(out) != "gw4: it has a plan of its own: see its status" {
			t.Errorf("%+v %v", out, err)
		}
		out, err = do(all[0].Steering, based(all[0].Steering), "rollback")
		if err != nil || len(out.Followed) != 4 || !own.Plan().held {
			t.Errorf("%+v %v", out, err)
		}
		must(t, all[0].Steering, "resume")
		if !own.Plan().held {
			t.Error("it is resumed by the others")
		}
		out, err = own.Rollback(Order{Time: start}) // of all, from there
		if err != nil || out.Revision != 5 || len(out.Followed) != 4 || !all[1].Plan().held {
			t.Errorf("%+v %v", out, err)
		}
		must(t, all[0].Steering, "resume")
		o := based(own)
		o.Local = true
		if out, err = own.Resume(o); err != nil || out.Revision != 6 {
			t.Error(out, err)
		}
		expectSays(t, own, "6: *.* 60")
		if own.Trouble() != nil || own.Plan().held {
			t.Error(own.Trouble())
		}
	})
}

// A gateway with a plan of its own is rolled back by that of the others. When theirs is
// purged and its own counts for all, nothing of that rollback is left but what it shows.
func TestPlanOfItsOwnAfterAPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := three(t)
		own := openPlan(t, filepath.Join(t.TempDir(), "plan.db"))
		must(t, own, "share *.* 40")
		must(t, all[0].Steering, "share *.* 60", "rollback")
		if err := own.Join(&seat{board: b}, "gw4"); err != nil {
			t.Fatal(err)
		}
		if !own.Plan().held || own.Status().Local == nil {
			t.Error("it is not rolled back with the others")
		}
		for _, m := range all {
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}
		b.mu.Lock()
		b.text, b.number = nil, 0
		b.mu.Unlock()
		time.Sleep(pollEvery + time.Second)
		o := based(own)
		o.Local = true
		if _, err := own.Resume(o); err != nil {
			t.Fatal(err)
		}
		if status := own.Status(); status.Hold != nil || status.Local != nil || own.Plan().held {
			t.Errorf("%+v, and it is held: %v", status, own.Plan().held)
		}
	})
}

// A gateway that died is waited for shortly, and named until it is back or forgotten; one
// that was stopped is not.
func TestGatewaysThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := three(t)
		all[2].seat.setCut(true) // as if it were killed
		began := time.Now()
		out, err := do(all[0].Steering, based(all[0].Steering), "share *.* 60")
		if err != nil || len(out.Followed) != 2 || !strings.HasPrefix(laggards(out), "gw3: ") || time.Since(began) > followFor+time.Second {
			t.Errorf("%+v, %v, %s", out, err, time.Since(began))
		}
		time.Sleep(aliveFor)
		began = time.Now()
		out, err = do(all[0].Steering, based(all[0].Steering), "share *.* 70")
		if err != nil || !strings.HasPrefix(laggards(out), "gw3: not heard of for ") || time.Since(began) > answerFor+retryPause {
			t.Errorf("%+v, %v, %s", out, err, time.Since(began))
		}
		time.Sleep(missingAfter)
		began = time.Now()
		out, err = do(all[0].Steering, based(all[0].Steering), "share *.* 75")
		if err != nil || len(out.Lagging) > 0 || len(out.Followed) != 2 || len(out.Missing) != 1 || !strings.HasPrefix(out.Missing[0].Why, "not heard of for ") || time.Since(began) > retryPause {
			t.Errorf("%+v, %v, %s", out, err, time.Since(began))
		}
		for _, command := range []string{"rollback", "resume"} { // it may still run, towards v2
			began = time.Now()
			out, err = do(all[0].Steering, based(all[0].Steering), command)
			if err != nil || (len(out.Lagging) == 1) != (command == "rollback") || len(out.Lagging)+len(out.Missing) != 1 || time.Since(began) > retryPause {
				t.Errorf("%s: %+v, %v, %s", command, out, err, time.Since(began))
			}
		}
		again := b.join(t, "gw3", filepath.Join(t.TempDir(), "plan.db"))
		synctest.Wait()
		out, err = do(all[0].Steering, based(all[0].Steering), "share *.* 80")
		if err != nil || len(out.Lagging) > 0 || len(out.Followed) != 3 {
			t.Errorf("%+v, %v", out, err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		out, err = do(all[0].Steering, based(all[0].Steering), "share *.* 90")
		if err != nil || len(out.Lagging) > 0 || len(out.Followed) != 2 {
			t.Errorf("%+v, %v", out, err)
		}
		all[1].seat.setCut(true)
		time.Sleep(knownFor + aliveFor)
		if list := all[0].Status().Gateways; len(list) != 1 || !list[0].Self || list[0].Why != "" {
			t.Errorf("%+v", list)
		}
	})
}

// A gateway that may not say or hear anything knows that it cannot say who follows.
func TestDeafGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := three(t)
		all[0].seat.mu.Lock()
		all[0].seat.deaf = true
		all[0].seat.mu.Unlock()
		time.Sleep(missingAfter + aliveFor)
		if err := all[0].Trouble(); !errors.Is(err, errDeaf) {
			t.Error(err)
		}
		out, err := do(all[0].Steering, based(all[0].Steering), "share *.* 60")
		if err != nil || len(out.Followed) != 0 || len(out.Lagging) != 3 {
			t.Errorf("%+v, %v", out, err)
		}
	})
}

// Gateways that decide by different things say so.
func TestOtherStick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := three(t)
		all[1].Configure(Legacy, StickKey)
		time.Sleep(pollEvery + time.Second)
		list := all[0].Status().Gateways
		if len(list) != 3 || !strings.HasPrefix(list[1].Why, "it has stick key, and this gateway client") || list[0].Why+list[2].Why != "" {
			t.Errorf("%+v", list)
		}
	})
}

// A gateway that shares no more goes on with the plan, and may change it.
func TestLeavingOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := three(t)
		if err := all[2].Join(nil, ""); err != nil {
			t.Fatal(err)
		}
		must(t, all[2].Steering, "share a.b 3")
		expectSays(t, all[2].Steering, "2: *.* 50, a.b 3")
		expectSays(t, all[0].Steering, "1: *.* 50")
		synctest.Wait()
		if list := all[0].Status().Gateways; len(list) != 2 {
			t.Errorf("%+v", list)
		}
	})
}

// A file that could not be read at the start, as another process has it: what the
// cluster says counts, and a rollback of the gateway that is in the file holds too once
// it can be read.
func TestFileThatCanBeReadLater(t *testing.T) {
	b := newBoard()
	path := filepath.Join(t.TempDir(), "plan.db")
	first := b.join(t, "gw1", path)
	must(t, first.Steering, "share *.* 50")
	if _, err := first.Rollback(Order{Time: start, Local: true}); err != nil {
		t.Fatal(err)
	}
	removeFile(t, path+copySuffix)
	second, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
	if !errors.Is(err, errInUse) {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = second.Close() })
	if err := second.Join(&seat{board: b}, "gw2"); err != nil {
		t.Fatal(err)
	}
	expectSays(t, second, "1: *.* 50")
	must(t, first.Steering, "share *.* 60", "share *.* 70")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	expectSays(t, second, "3: *.* 70")
	if err := second.Save(); err != nil {
		t.Error(err)
	}
	expectSays(t, second, "3: *.* 70")
	if !second.Plan().held || second.saved.Local == nil {
		t.Error("the rollback in the file does not count")
	}
}

// What is in the cluster and no plan changes nothing, and nothing is written over it.
func TestDamagedPlanInTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, all := three(t)
		b.mu.Lock()
		b.text = []byte("td-postback plan 2 00000000\n{}")
		b.mu.Unlock()
		time.Sleep(pollEvery + time.Second)
		if err := all[0].Trouble(); !errors.Is(err, errState) {
			t.Error(err)
		}
		if _, err := do(all[0].Steering, based(all[0].Steering), "share *.* 60"); !errors.As(err, new(*NotSavedError)) {
			t.Error(err)
		}
		out, err := all[0].Rollback(Order{Time: start})
		if err != nil || out.Unsaved == "" || !all[0].Plan().held || all[1].Plan().held {
			t.Error(out, err)
		}
	})
}

// A rollback that is meant for another plan than the newest changes nothing, here neither.
func TestRollbackOfAnotherPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := three(t)
		o := based(all[0].Steering)
		for _, m := range all[1:] {
			m.seat.mu.Lock()
			m.seat.deaf = true
			m.seat.mu.Unlock()
		}
		old := based(all[1].Steering)
		all[1].joined.ordering <- struct{}{} // it does not follow meanwhile
		out := make(chan error)
		go func() {
			_, err := do(all[0].Steering, o, "share *.* 60")
			if err != nil {
				t.Error(err)
			}
			_, err = all[1].Rollback(old)
			out <- err
		}()
		for all[1].joined.rollbacks.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		if !all[1].Plan().held {
			t.Error("it does not hold at once")
		}
		<-all[1].joined.ordering
		if err := <-out; !errors.As(err, new(*ConflictError)) {
			t.Error(err)
		}
		expectSays(t, all[1].Steering, "2: *.* 60")
		if all[1].Plan().held || all[1].Status().Local != nil {
			t.Error("it holds though it was refused")
		}
	})
}

// A gateway whose disk hangs, with a change that it is to write: a rollback of all holds
// there too. When the disk is back, it follows.
func TestDiskHangs(t *testing.T) {
	b := newBoard()
	one, other := b.join(t, "gw1", filepath.Join(t.TempDir(), "plan.db")), b.join(t, "gw2", filepath.Join(t.TempDir(), "plan.db"))
	must(t, one.Steering, "share *.* 50")
	other.file.mu.Lock()
	var answers sync.WaitGroup
	for i, command := range []string{"share *.* 60", "rollback"} {
		o := based(one.Steering)
		answers.Go(func() {
			if _, err := do(one.Steering, o, command); err != nil {
				t.Error(err)
			}
		})
		for one.Status().Revision != uint64(i)+2 {
			time.Sleep(time.Millisecond)
		}
	}
	for !other.Plan().held {
		time.Sleep(time.Millisecond)
	}
	other.file.mu.Unlock()
	answers.Wait()
	expectSays(t, other.Steering, "3: held *.* 60")
	must(t, one.Steering, "resume")
	expectSays(t, other.Steering, "4: *.* 60")
	if other.Plan().held {
		t.Error("it is not lifted")
	}
}

// Gateways are cut off and come back, and are changed, rolled back and started again, at
// random. Each change that was answered is in the history, once. A gateway that was rolled
// back by itself stays so until it is resumed by itself. In the end, all have one plan.
func TestGatewaysAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := randomly{t: t, Rand: rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // G404: a test
			r.board, r.all = three(t)
			r.made = map[uint64]string{}
			for range 60 {
				r.step()
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			r.settle()
		})
	}
}

type randomly struct {
	t *testing.T
	*rand.Rand
	board *board
	all   []*member
	local [3]bool
	made  map[uint64]string // what was answered, by its revision
}

func (r *randomly) step() {
	synctest.Wait() // none is about to follow
	i := r.IntN(3)
	m := r.all[i]
	o := based(m.Steering)
	o.Who = fmt.Sprint("step ", r.Uint32())
	switch r.IntN(8) {
	case 0:
		m.seat.setCut(r.IntN(2) == 0)
	case 1:
		o.Local, r.local[i] = true, true
		if _, err := m.Rollback(o); err != nil {
			r.t.Error(err)
		}
	case 2:
		o.Local, r.local[i] = true, false
		if _, err := m.Resume(o); err != nil {
			r.t.Error(err)
		}
	case 3:
		time.Sleep(time.Duration(r.IntN(5)) * time.Second)
	case 4:
		name, path, cut := fmt.Sprint("gw", i+1), m.cfg.Path, m.seat.cut
		if err := m.Close(); err != nil {
			r.t.Error(err)
		}
		s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
		if err != nil {
			r.t.Error(err)
		}
		r.t.Cleanup(func() { _ = s.Close() })
		r.all[i] = &member{s, &seat{board: r.board, cut: cut}}
		_ = s.Join(r.all[i].seat, name) // it may be cut off
	default:
		command := []string{"rollback", "resume", fmt.Sprint("share a.b ", r.IntN(100)), "undo"}[r.IntN(4)]
		out, err := do(m.Steering, o, command)
		if err == nil && out.Change != nil && out.Unsaved == "" {
			if before := r.made[out.Revision]; before != "" {
				r.t.Errorf("revision %d was made by %q and by %q", out.Revision, before, o.Who)
			}
			r.made[out.Revision] = o.Who
		}
		if command == "rollback" && err == nil && !m.Plan().held {
			r.t.Error("a rollback does not hold where it was ordered")
		}
	}
	for i, m := range r.all {
		if r.local[i] && !m.Plan().held {
			r.t.Errorf("gateway %d is not rolled back any more", i+1)
		}
	}
}

func (r *randomly) settle() {
	for _, m := range r.all {
		m.seat.setCut(false)
	}
	time.Sleep(3 * pollEvery)
	for i, m := range r.all {
		if says(m.Steering) != says(r.all[0].Steering) || m.Trouble() != nil {
			r.t.Errorf("%s and %s, %v", says(m.Steering), says(r.all[0].Steering), m.Trouble())
		}
		if m.Plan().held != (r.local[i] || m.Status().Hold != nil) {
			r.t.Errorf("gateway %d is held: %t", i+1, m.Plan().held)
		}
	}
	for _, c := range r.all[0].History() {
		if who := r.made[c.Revision]; who != "" && who != c.Who {
			r.t.Errorf("revision %d is by %s, and was answered to %s", c.Revision, c.Who, who)
		}
		delete(r.made, c.Revision)
	}
	if len(r.made) > 0 {
		r.t.Errorf("lost: %v", r.made)
	}
}

func FuzzPresence(f *testing.F) {
	f.Add(presence{ID: "a", Name: "gw1", Revision: 3, Asks: true}.encode())
	f.Add([]byte(`{"id":"a","name":"` + strings.Repeat("\x1b", 500) + `","more":1}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, ok := parsePresence(text)
		if ok && (p.ID == "" || !isText(p.ID, maxGateway) || !isText(p.Name, maxGateway) || !isText(p.Stick, maxGateway)) {
			t.Errorf("%+v", p)
		}
	})
}

// seeLostRollback has a gateway see a rollback in the cluster that it cannot take up yet,
// as when its disk hangs, and that the cluster then loses: put says what is there instead.
func seeLostRollback(t *testing.T, b *board, m *member, put func(rolledBack *planState) []byte) {
	t.Helper()
	m.joined.ordering <- struct{}{}
	b.mu.Lock()
	rolledBack := m.state.hold(&Order{Time: start, Who: "ann@desk"}, ActionRollback)
	b.text, _ = rolledBack.encode()
	b.mu.Unlock()
	m.joined.peek()
	if !m.Plan().held {
		t.Error("the rollback does not hold at once")
	}
	b.mu.Lock()
	b.text = put(rolledBack)
	b.number++
	b.mu.Unlock()
	<-m.joined.ordering
}

// A rollback that a gateway has seen in the cluster is no secret of it: if the cluster
// loses it, as by a backup that is put back, the gateway puts it there again, shows it, and
// a resume lifts it.
func TestRollbackThatTheClusterLoses(t *testing.T) {
	for name, before := range map[string]bool{"an older plan is put back": true, "the plan is gone": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				m := b.join(t, "gw1", filepath.Join(t.TempDir(), "plan.db"))
				must(t, m.Steering, "share *.* 50")
				older, _ := m.state.encode()
				seeLostRollback(t, b, m, func(*planState) []byte {
					if before {
						return older
					}
					b.number = 0
					return nil
				})
				time.Sleep(pollEvery + time.Second)
				expectSays(t, m.Steering, "2: held *.* 50")
				if plan := b.plan(t); plan.Hold == nil || plan.Hold.Who != "ann@desk" {
					t.Errorf("the cluster has %+v", plan)
				}
				must(t, m.Steering, "resume")
				expectSays(t, m.Steering, "3: *.* 50")
				if m.Plan().held {
					t.Error("it is not lifted")
				}
			})
		})
	}
}

// The same, if somebody has made another change of the older plan: the gateway stays
// rolled back and says that it is apart, until it is resumed by itself.
func TestRollbackInPlaceOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		m := b.join(t, "gw1", filepath.Join(t.TempDir(), "plan.db"))
		must(t, m.Steering, "share *.* 50")
		seeLostRollback(t, b, m, func(*planState) []byte {
			rule := Rule{Target: "a.b"}
			other, err := m.state.apply(&Order{Time: start}, &wish{action: ActionShare, rule: rule, share: 100})
			if err != nil {
				t.Fatal(err)
			}
			text, _ := other.encode()
			return text
		})
		time.Sleep(pollEvery + time.Second)
		if expectSays(t, m.Steering, "2: held *.* 50"); !m.Plan().held || m.apart == nil {
			t.Error("it has resumed by itself")
		}
		o := based(m.Steering)
		o.Local = true
		if _, err := m.Resume(o); err != nil || m.Plan().held {
			t.Error(err)
		}
		expectSays(t, m.Steering, "2: *.* 50, a.b 1")
	})
}

// A gateway that leaves the others before it could take their rollback up stays rolled
// back, also after a restart, until it is resumed.
func TestLeavingWithARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		m := b.join(t, "gw1", filepath.Join(t.TempDir(), "plan.db"))
		must(t, m.Steering, "share *.* 50")
		seeLostRollback(t, b, m, func(rolledBack *planState) []byte {
			text, _ := rolledBack.encode()
			m.seat.cut = true
			return text
		})
		path := m.cfg.Path
		if err := m.Join(nil, ""); err != nil {
			t.Fatal(err)
		}
		expectSays(t, m.Steering, "2: held *.* 50")
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		s := openPlan(t, path)
		if expectSays(t, s, "2: held *.* 50"); !s.Plan().held {
			t.Error("it has resumed by itself")
		}
	})
}

// A rollback that was seen late does not hold over a plan that is newer.
func TestRollbackThatIsSeenLate(t *testing.T) {
	s := openPlan(t, "")
	must(t, s, "share *.* 50", "rollback", "resume")
	s.layHold(2)
	if s.Plan().held {
		t.Error("it holds over the resume")
	}
	if s.layHold(4); !s.Plan().held {
		t.Error("a newer one does not hold")
	}
}
