package console

import (
	"strings"
	"testing"
	"time"
)

// TestState makes one thing worse at a time: the worst is the sentence, and the page
// says all of it.
func TestState(t *testing.T) {
	t.Parallel()
	p := quietPage()
	step := func(level Level, text string, change func()) {
		t.Helper()
		change()
		if state := p.State(); state.Level != level || !strings.Contains(state.Text, text) {
			t.Errorf("%q: %d %s", text, state.Level, state.Text)
		}
	}
	step(Good, "No call has come in the last minute.", func() {})
	step(Good, "nothing is lost", func() { p.Recent.All[ToV2] = 1 })
	step(Good, "12 calls a second come in, all at v2", func() { p.Recent.Minute[ToV2] = 12 })
	step(Good, "12 calls a second come in, each sent on, or kept in the spool; nothing is lost", func() { p.Recent.Minute[ToV2], p.Recent.Minute[Kept] = 7, 5 })
	step(Good, "nothing was lost in the last 5 minutes", func() { p.Books = []Book{{Surface: "post", Lost: 3}} })
	step(Look, "Refused in the last 5 minutes: 1 call.", func() { p.Recent.Alarm[Refused] = 1 })
	step(Look, "Rolled back", func() { p.Plan = &Plan{Hold: &Hold{}} })
	step(Look, "Rolled back, this gateway alone", func() { p.Plan.Hold.Local = true })
	step(Look, "The gateway gw-2 is not on the plan.", func() {
		p.Plan = &Plan{Gateways: []Gateway{{Name: "gw-1", Self: true}, {Name: "gw-2", Why: "it is silent"}}}
	})
	step(Look, "Dead letters: 3.", func() { p.Spools = []Spool{{Available: true, MaxBytes: 100, Queues: []Queue{{Dead: 3}}}} })
	step(Look, "Down: https://v2. Its records are kept", func() { p.Spools[0].Queues[0].Name, p.Spools[0].Queues[0].Down = "https://v2", true })
	step(Look, "more than 80 % full", func() { p.Spools[0].Bytes = 81 })
	step(Look, "A spool does not answer", func() { p.SpoolsOld = true })
	step(Bad, "waits for 6 days", func() { p.Spools[0].Queues[0].Oldest = now.Add(-6 * 24 * time.Hour) })
	step(Bad, "callers are turned away", func() { p.Spools[0].Health = HealthRefusing })
	step(Bad, "Missing in the books: 2 calls.", func() { p.Books = []Book{{Difference: 2}} })
	step(Bad, "Lost in the last 5 minutes: 1,234 calls.", func() { p.Recent.Alarm[Lost] = 1234 })
	if troubles := p.Troubles(); len(troubles) != 9 {
		t.Errorf("%d troubles: %v", len(troubles), troubles)
	}
	for _, trouble := range p.Troubles() {
		if trouble.Do == "" {
			t.Errorf("%s: nothing to do", trouble.Text)
		}
	}
}

// TestStuckLetters: dead letters that cannot be read are not none.
func TestStuckLetters(t *testing.T) {
	t.Parallel()
	p := quietPage()
	p.Letters = &Letters{Spool: "/spool", Queue: "https://v2", Problem: "the disk does not answer"}
	if said := text(byID(render(t, p, "dead=/spool&queue=https://v2"), "letters")); !strings.Contains(said, "The disk does not answer.") || strings.Contains(said, "none here") {
		t.Error(said)
	}
}

// TestStateInWords: the page says it with a word, not with a colour alone.
func TestStateInWords(t *testing.T) {
	t.Parallel()
	if said := text(byID(render(t, quietPage(), ""), "state")); !strings.Contains(said, "All is well") {
		t.Error(said)
	}
	if said := text(byID(render(t, busyPage(), ""), "state")); !strings.Contains(said, "Act now") || !strings.Contains(said, "Take a look") {
		t.Error(said)
	}
}
