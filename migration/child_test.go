package migration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// This file has processes that are killed.

// children are what this binary does instead of its tests, by the variable that says so
// and has the path of a file. Each says now and then how far it is.
var children = map[string]func(path string){
	childSaves:   saveUntilKilled,
	childChanges: changeUntilKilled,
}

const (
	childSaves   = "TEST_REPORT_FILE"
	childChanges = "TEST_PLAN_FILE"
)

func TestMain(m *testing.M) {
	for variable, run := range children {
		if path := os.Getenv(variable); path != "" {
			run(path)
			return
		}
	}
	os.Exit(m.Run())
}

// killChild runs a child, and kills it some time after it has begun to say how far it is.
// It returns the last number that was said, in this format.
func killChild(t *testing.T, variable, path, format string, after time.Duration) (said uint64) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), variable+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := sync.OnceFunc(func() { _ = cmd.Process.Kill() })
	in := bufio.NewScanner(out)
	for lines := 0; in.Scan(); lines++ {
		if _, err := fmt.Sscanf(in.Text(), format, &said); err != nil {
			t.Errorf("the process said %q", in.Text())
		}
		if lines == 0 {
			time.AfterFunc(after, killed)
		}
	}
	killed()
	_ = cmd.Wait()
	return said
}
