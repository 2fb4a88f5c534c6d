package caddymodule

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPipeIsNoFile names a pipe, which nobody writes to, where an option wants a
// file. The load fails, and does not wait.
func TestPipeIsNoFile(t *testing.T) {
	g := newSpooling(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, handler := range map[string]string{
		"spool key_file": g.handler("http://127.0.0.1:1", fmt.Sprintf(`"key_file":%q`, pipe)),
		"tls_ca":         fmt.Sprintf(`{"handler":"td_postback","region":"us01","tls_ca":[%q]}`, pipe),
	} {
		failed := make(chan error, 1)
		go func() { failed <- validate(t, g.config(handler)) }()
		select {
		case err := <-failed:
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s %q: must be a readable", want, pipe)) {
				t.Errorf("%s: got %v", want, err)
			}
		case <-time.After(testWait):
			t.Errorf("%s: the load waits for the pipe", want)
		}
	}
}
