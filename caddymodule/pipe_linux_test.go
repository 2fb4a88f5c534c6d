package caddymodule

import (
	"fmt"
	"os"
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
		"keys file":      fmt.Sprintf(`{"handler":"td_postback","region":"us01","keys":{"file":%q}}`, pipe),
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

// TestKeyFileBecomesAPipe: the keys of before count, and nothing waits.
func TestKeyFileBecomesAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, "1/aa\n")
	f, err := newKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f.look()
	f.look()
	if f.because != "it is no regular file" || !f.list.Load().Has("1/aa") {
		t.Errorf("got %q", f.because)
	}
}
