package caddymodule

import (
	"strings"
	"testing"
)

// TestWarningDue logs a warning once a minute, by a clock that does not jump.
func TestWarningDue(t *testing.T) {
	w := warning{}
	if !w.due() || w.due() {
		t.Error("the first one is not due, or the second one is")
	}
	w.last.Add(-int64(warningPause))
	if !w.due() || w.due() {
		t.Error("a minute later: not due, or twice")
	}
	if !strings.Contains(processStart.String(), " m=") {
		t.Error("the time is measured by the wall clock")
	}
}
