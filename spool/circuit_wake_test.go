package spool

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestCircuitWakesAfterAProbe waits for a try while another is on its way: when
// that fails, the wait is as long as the circuit's pause, and not as the lease.
func TestCircuitWakesAfterAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Circuit
		for range openAfter {
			c.Failure(0)
		}
		if err := c.Wait(context.Background()); err != nil { // the probe
			t.Fatal(err)
		}
		from, done := time.Now(), make(chan time.Duration)
		go func() {
			_ = c.Wait(context.Background())
			done <- time.Since(from)
		}()
		synctest.Wait()
		c.Failure(0)
		if took := <-done; took > 3*time.Second {
			t.Errorf("the next try was made after %v", took)
		}
	})
}
