package caddymodule

import (
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What v2 refused and nobody keeps is counted by account: however many accounts a
// caller makes up, there are only so many, and none is left uncounted.
func TestUnkeptAccountsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u unkept
		for i := range 5000 {
			u.add(strconv.Itoa(i) + "/…")
			u.add("1234/…")
		}
		u.mu.Lock()
		total := 0
		for _, n := range u.counts {
			total += n
		}
		if len(u.counts) > maxUnkeptAccounts+1 || total != 10_000 || u.counts["1234/…"] != 5001 || u.counts[otherAccounts] < 4000 {
			t.Errorf("%d accounts with %d records, %d of others", len(u.counts), total, u.counts[otherAccounts])
		}
		u.mu.Unlock()
		time.Sleep(unkeptFirst)
		synctest.Wait()
		u.add("1/…") // within the minute
		time.Sleep(unkeptPause - 2*time.Second)
		u.mu.Lock()
		if len(u.counts) != 1 {
			t.Errorf("%d accounts are to be told of, want the one since the last line", len(u.counts))
		}
		u.mu.Unlock()
		time.Sleep(2 * unkeptPause)
		u.mu.Lock()
		defer u.mu.Unlock()
		if len(u.counts) > 0 || u.timer != nil {
			t.Errorf("with nothing to tell, it goes on: %v", u.counts)
		}
	})
}

// Neither is an account as long as a caller can make it.
func TestUnkeptAccountsAreShort(t *testing.T) {
	t.Parallel()
	u := unkept{timer: time.NewTimer(time.Hour)}
	u.add(strings.Repeat("1", 60_000) + "/…")
	u.add("12345678901234567890/…")
	if len(u.counts) != 2 || u.counts[otherAccounts] != 1 {
		t.Errorf("%d accounts, of which %d are others", len(u.counts), u.counts[otherAccounts])
	}
}

func TestAccountOfAKeptRecord(t *testing.T) {
	t.Parallel()
	for want, data := range map[string]string{
		"1234/…": "POST /db/t HTTP/1.1\r\nHost: v2\r\nX-TD-Write-Key: 1234/abc\r\nContent-Length: 2\r\n\r\n{}",
		"…":      "POST /db/t HTTP/1.1\r\nHost: v2\r\nX-TD-Write-Key: what is this\r\nContent-Length: 2\r\n\r\n{}",
		"none":   "rubbish",
	} {
		if got := accountOf([]byte(data)); got != want {
			t.Errorf("%q has the account %q, want %q", data, got, want)
		}
	}
}

// TestAccountOfALargeRecord: v2 may refuse hundreds of them at a time, whose memory
// is counted once.
func TestAccountOfALargeRecord(t *testing.T) {
	body := strings.Repeat("x", 1<<20)
	data := []byte("POST /db/t HTTP/1.1\r\nHost: v2\r\nX-TD-Write-Key: 1234/abc\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if got := accountOf(data); got != "1234/…" {
			t.Fatalf("got %q", got)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / 100; each > 16<<10 {
		t.Errorf("it takes %d bytes", each)
	}
}
