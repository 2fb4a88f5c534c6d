package caddymodule

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// followed follows a file with this text until the end of the test.
func followed(t *testing.T, text string) *keyFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, text)
	f, err := followKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.leave)
	return f
}

func writeKeys(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// expect waits for as long as a change may take, and checks which of two keys is known.
func (f *keyFile) expect(t *testing.T, old, changed bool) {
	t.Helper()
	time.Sleep(2 * time.Second)
	synctest.Wait()
	if list := f.list.Load(); list.Has("1/aa") != old || list.Has("1/bb") != changed {
		t.Errorf("the old key is known: %v, the new one: %v", list.Has("1/aa"), list.Has("1/bb"))
	}
}

// TestKeyFileChanges: what a file says counts within 2 s, however it is changed, and
// what cannot be used changes nothing.
func TestKeyFileChanges(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, path string)
		takes  bool
	}{
		"in place": {func(t *testing.T, path string) { writeKeys(t, path, "1/bb\n") }, true},
		"in place, with the old time": {func(t *testing.T, path string) {
			info, _ := os.Stat(path)
			writeKeys(t, path, "1/bb\n")
			if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
				t.Fatal(err)
			}
		}, true},
		"by rename": {func(t *testing.T, path string) {
			writeKeys(t, path+".new", "1/bb\n")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}, true},
		"by a link, as Kubernetes does": {func(t *testing.T, path string) {
			writeKeys(t, path+".new", "1/bb\n")
			_ = os.Remove(path)
			if err := os.Symlink(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}, true},
		"gone": {func(_ *testing.T, path string) { _ = os.Remove(path) }, false},
		"a directory": {func(t *testing.T, path string) {
			_ = os.Remove(path)
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, false},
		"too large": {func(t *testing.T, path string) {
			if err := os.Truncate(path, maxKeyFile+1); err != nil {
				t.Fatal(err)
			}
		}, false},
		"empty":      {func(t *testing.T, path string) { writeKeys(t, path, "") }, false},
		"a bad line": {func(t *testing.T, path string) { writeKeys(t, path, "1/bb\nYOUR_KEY\n") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := followed(t, "1/aa\n")
				f.expect(t, true, false)
				tc.change(t, f.path)
				f.expect(t, !tc.takes, tc.takes)

				// And then it is mended.
				_ = os.Remove(f.path)
				writeKeys(t, f.path, "1/bb\n")
				f.expect(t, false, true)
			})
		})
	}
}

// TestKeyFileIsWrittenSlowly: what is half written does not count, as long as it grows.
func TestKeyFileIsWrittenSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := followed(t, "1/aa\n1/bb\n")
		text := ""
		for n := range 40 {
			text += "1/cc\n"
			writeKeys(t, f.path, text+"1/b") // a part of a line, which is a key too
			time.Sleep(keyFilePause / 2)
			if list := f.list.Load(); !list.Has("1/aa") || !list.Has("1/bb") || list.Has("1/b") {
				t.Fatalf("it counts after %d pieces", n+1)
			}
		}
		writeKeys(t, f.path, text+"1/bb\n")
		f.expect(t, false, true)
	})
}

// TestKeyFileThatNeverStays: what is in a file that changes all the time counts too,
// within 2 s, and what is half written takes no key away.
func TestKeyFileThatNeverStays(t *testing.T) {
	rename := func(t *testing.T, path, text string) {
		t.Helper()
		writeKeys(t, path+".new", text)
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	halfWritten := func(t *testing.T, path, text string) {
		t.Helper()
		writeKeys(t, path, text[:strings.LastIndex(text, "1/bb")])
		time.Sleep(keyFilePause / 4)
		writeKeys(t, path, text)
	}
	for name, tc := range map[string]struct {
		write func(t *testing.T, path, text string)
		text  string // with the number of the change for *
		old   string // whether the old key counts on, though the file does not stay
	}{
		"in place, with the time":      {writeKeys, "# *\n1/bb\n", "no"},
		"by rename, with the time":     {rename, "1/bb label-*\n", "no"},
		"in place, with other keys":    {writeKeys, "1/cc*\n1/bb\n", "yes"},
		"by rename, with other keys":   {rename, "1/bb\n1/cc*\n", "yes"},
		"half written, with the time":  {halfWritten, "# *\n1/cc\n1/bb\n", "maybe"},
		"half written, with more keys": {halfWritten, "1/cc*\n1/aa\n1/bb\n", "yes"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := followed(t, "1/aa\n")
				began, knows := time.Now(), func(key string) bool { return f.list.Load().Has(key) }
				for n := 0; time.Since(began) < time.Minute; n++ {
					tc.write(t, f.path, strings.ReplaceAll(tc.text, "*", strconv.Itoa(n)))
					time.Sleep(keyFilePause*3/5 + time.Duration(n))
					synctest.Wait()
					if late := time.Since(began) > 2*time.Second; late && !knows("1/bb") || tc.old == "yes" && !knows("1/aa") || late && tc.old == "no" && knows("1/aa") {
						t.Fatalf("after %s the old key is known: %v, the new one: %v", time.Since(began), knows("1/aa"), knows("1/bb"))
					}
				}
				writeKeys(t, f.path, "1/bb\n")
				f.expect(t, false, true)

				// It changes all the time, and then it is what it was.
				for n := range 10 {
					writeKeys(t, f.path, "1/aa\n1/cc"+strconv.Itoa(n)+"\n")
					time.Sleep(keyFilePause)
				}
				writeKeys(t, f.path, "1/bb\n")
				f.expect(t, false, true)
			})
		})
	}
}

// TestKeyFileTroubleIsTold: each trouble is told once a minute, and another at once.
func TestKeyFileTroubleIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "keys")
		writeKeys(t, path, "1/aa\n")
		f, err := newKeyFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// look looks for this long, and checks what the trouble is and when it was told.
		look := func(text string, pause time.Duration, because string, told time.Duration) {
			t.Helper()
			writeKeys(t, path, text)
			began := time.Now()
			for time.Since(began) < pause {
				time.Sleep(keyFilePause)
				f.look()
			}
			if because == "" && f.because != "" || !strings.HasPrefix(f.because, because) {
				t.Errorf("%q: got %q", text, f.because)
			}
			if f.because != "" && f.told.Sub(began) != told {
				t.Errorf("%q: told after %s, want %s", text, f.told.Sub(began), told)
			}
			if !f.list.Load().Has("1/aa") {
				t.Errorf("%q: the old key is gone", text)
			}
		}
		look("1/aa\nx\n", 2*time.Second, "line 2: ", time.Second)
		look("1/aa\nx\n", 50*time.Second, "line 2: ", -time.Second)
		look("x\n", 50*time.Second, "line 1: ", time.Second)
		look("x\n", 30*time.Second, "line 1: ", 11*time.Second)
		look("1/aa\n", time.Second, "", 0)
		look(strings.Repeat(" ", maxKeyFile+1), time.Second, "it has more than", time.Second)
		look("x\n", 2*time.Second, "line 1: ", time.Second)
		for n := range 10 { // it does not stay
			writeKeys(t, path, "1/aa\n1/b"+strconv.Itoa(n)+"\n")
			f.look()
		}
		if !strings.HasPrefix(f.because, "it changes all the time") {
			t.Errorf("got %q", f.because)
		}
		look("x\n", 2*time.Second, "line 1: ", time.Second)
	})
}

// TestKeyFileIsShared: two blocks follow a file once, and the last one that leaves it
// ends that.
func TestKeyFileIsShared(t *testing.T) {
	f := followed(t, "1/aa\n")
	again, err := followKeyFile(f.path)
	if err != nil || again != f {
		t.Fatal(again, err)
	}
	again.leave()
	select {
	case <-f.stop:
		t.Error("it is followed no more")
	default:
	}
	if _, err := followKeyFile(filepath.Join(t.TempDir(), "none")); err == nil || strings.Contains(err.Error(), "none") {
		t.Errorf("no file: %v", err)
	}
	large := filepath.Join(t.TempDir(), "large")
	writeKeys(t, large, "1/aa\n")
	if err := os.Truncate(large, maxKeyFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := followKeyFile(large); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a large file: %v", err)
	}
}
