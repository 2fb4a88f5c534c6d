package caddymodule

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/postback"
)

// unkept counts by account the records that v2 refused for good and that dead
// letters had no room for, and tells of them once a minute. An account is a
// caller's to make up, so it is no label of a metric, and there are only so many.
type unkept struct {
	mu     sync.Mutex
	counts map[string]int
	timer  *time.Timer // runs until it has had nothing to tell
}

const (
	maxUnkeptAccounts  = 1000
	maxUnkeptAccount   = 32 // bytes of one that is named
	toldUnkeptAccounts = 5

	// The pause before the first line, in which others gather, and between two.
	unkeptFirst = time.Second
	unkeptPause = time.Minute
)

// otherAccounts is what the rest counts as.
const otherAccounts = "others"

var refusedUnkept unkept

func (u *unkept) add(account string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.counts == nil {
		u.counts = map[string]int{}
	}
	if _, known := u.counts[account]; !known && len(u.counts) >= maxUnkeptAccounts || len(account) > maxUnkeptAccount {
		account = otherAccounts
	}
	u.counts[account]++
	if u.timer == nil {
		u.timer = time.AfterFunc(unkeptFirst, u.tell)
	}
}

// tell writes what has come since the last time.
func (u *unkept) tell() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.counts) == 0 {
		u.timer = nil
		return
	}
	total := 0
	for _, n := range u.counts {
		total += n
	}
	accounts := slices.SortedFunc(maps.Keys(u.counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(u.counts[b], u.counts[a]), cmp.Compare(a, b))
	})
	top := make(map[string]int, toldUnkeptAccounts)
	for _, account := range accounts[:min(len(accounts), toldUnkeptAccounts)] {
		top[account] = u.counts[account]
	}
	u.counts = nil
	u.timer.Reset(unkeptPause)
	caddy.Log().Named(handlerID).Warn("v2 refused records, and dead letters have no room for them",
		zap.Int("records", total), zap.Int("accounts", len(accounts)), zap.Any("most", top),
		zap.String("advice", "they are gone; see who sends what v2 refuses; td-spool drop makes room for dead letters, or a larger dead_size"))
}

// accountOf is the account of a kept request.
func accountOf(data []byte) string { return cmp.Or(postback.KeptAccount(data), "none") }

// keptFingerprint is the name of the key of a kept request.
func keptFingerprint(data []byte) string {
	kept, _ := postback.ReadKept(data) // what can be read of a damaged one
	return fingerprintOf(kept.Credentials.Key())
}
