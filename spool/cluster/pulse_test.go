package cluster

import (
	"testing"
	"testing/synctest"
	"time"
)

// The servers are silent when records wait and none is acknowledged for a second,
// and not for longer than this process has looked.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulse
		last, well := p.acked.Load(), time.Now()
		after := func(d time.Duration, want time.Duration, what string) {
			t.Helper()
			time.Sleep(d)
			p.feel(&last, &well)
			if got := p.quiet(); got != want {
				t.Errorf("%s: quiet for %s, want %s", what, got, want)
			}
		}
		after(time.Hour, 0, "nobody waits")
		p.waiting.Add(1)
		after(resend-1, 0, "somebody waits")
		p.acked.Add(1)
		after(1, 0, "a record was acknowledged")
		after(resend-1, 0, "the next one waits")
		after(1, resend, "and is not acknowledged")
		p.waiting.Add(-1)
		after(time.Minute, time.Minute+resend, "nobody waits any more")
		p.acked.Add(1)
		after(1, 0, "the probe was acknowledged")
		p.waiting.Add(1)
		after(time.Hour, 2*resend, "the process was suspended")
	})
}
