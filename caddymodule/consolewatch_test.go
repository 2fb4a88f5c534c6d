package caddymodule

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/console"
)

// TestConsoleWhileSpoolsAreStuck: a disk or a cluster that does not answer holds up
// neither the page nor the end of the configuration. The page says so.
func TestConsoleWhileSpoolsAreStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, stuck, of := new(consoleWatch), make(chan struct{}), newTurn()
		known := func() []console.Spool { return []console.Spool{{Place: "/spool"}} }
		never := func() []console.Spool { <-stuck; return nil }
		w.seeSpools(of, known)
		time.Sleep(time.Minute)
		began := time.Now()
		for range 5 {
			if got := w.seeSpools(of, never); !got.old || len(got.list) != 1 {
				t.Errorf("%+v", got)
			}
		}
		w.spools.forget()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("five tabs and a forgetting waited for %s", took)
		}
		if got := w.seeSpools(of, known); !got.old {
			t.Errorf("while one still waits, another one asks: %+v", got)
		}
		close(stuck)
		time.Sleep(time.Minute)
		if got := w.seeSpools(of, known); got.old || len(got.list) != 1 {
			t.Errorf("%+v", got)
		}
	})
}
