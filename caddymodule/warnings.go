package caddymodule

import (
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// warning is a kind of trouble that is logged once a minute: enough to see it,
// and no flood when every request has it. How many requests have it is in the
// metrics. The kinds belong to the process, so a reload repeats none.
type warning struct {
	message string
	last    atomic.Int64 // UNIX time, in seconds
}

const warningPause = 60 // seconds

var (
	unusualKey      = warning{message: "write key of unusual form"}
	droppedAuth     = warning{message: "Authorization dropped beside a legacy key"}
	refusedRedirect = warning{message: "redirect refused"}
	outOfMemory     = warning{message: "record refused: max_buffered is used up"}
	notDelivered    = warning{message: "record not delivered"}
	notTaken        = warning{message: "Postback v2 did not take a record"}
	kept            = warning{message: "record kept for later"}
	deadLetter      = warning{message: "a kept record became a dead letter"}
	notKept         = warning{message: "record neither delivered nor kept"}
)

// due reports whether the last warning is a minute ago, and notes this one.
func (w *warning) due() bool {
	now, last := time.Now().Unix(), w.last.Load()
	return now-last >= warningPause && w.last.CompareAndSwap(last, now)
}

// check returns an entry to write, if it is due.
func (w *warning) check(logger *zap.Logger) *zapcore.CheckedEntry {
	if !w.due() {
		return nil
	}
	return logger.Check(zap.WarnLevel, w.message)
}

// warnOfKey tells of what v2 would not complain about: a key that is probably
// wrong, and an Authorization that did not go along.
func (h *Handler) warnOfKey(r *http.Request, out *postback.Request) {
	cred := &out.Credentials
	if !postback.UsualKey(cred.Key()) {
		if c := unusualKey.check(h.logger); c != nil {
			c.Write(zap.String("account", cred.Account()), zap.String("database", out.Database), zap.String("table", out.Table),
				zap.String("advice", "compare the caller's key with the one in Treasure Data, 1234/ and hexadecimal digits: v2 answers 200 to a wrong key and loses the record"))
		}
	}
	if len(r.Header["Authorization"]) > 0 && cred.Authorization == "" {
		if c := droppedAuth.check(h.logger); c != nil {
			c.Write(zap.String("database", out.Database), zap.String("table", out.Table),
				zap.String("advice", "nothing, if the caller sends it for something else; if it is meant for v2, send Authorization: TD1 without td_write_key in the URL"))
		}
	}
}

// warnOfRedirect tells of a td_redirect that is not followed. The record is
// sent all the same.
func (h *Handler) warnOfRedirect(out *postback.Request) {
	if c := refusedRedirect.check(h.logger); c != nil {
		c.Write(zap.String("database", out.Database), zap.String("table", out.Table),
			zap.String("advice", "if the target of td_redirect is yours, add its host to redirect_hosts"))
	}
}

// warnOfMemoryLimit tells of a record that is refused because all bodies
// together have become too large.
func (h *Handler) warnOfMemoryLimit(refused *postback.Refusal) {
	if refused != postback.ErrOverloaded {
		return
	}
	if c := outOfMemory.check(h.logger); c != nil {
		c.Write(zap.Int64("max_buffered", h.MaxBuffered),
			zap.String("advice", "if v2 is slow, see to that; otherwise raise max_buffered and with it GOMEMLIMIT, or add a gateway"))
	}
}

// warnOfFailure tells of a record that v2 did not get, or not for certain.
func (h *Handler) warnOfFailure(refused *postback.Refusal, err error, way *route) {
	advice := "check v2's host in DNS, the way there, HTTPS_PROXY and tls_ca"
	switch refused {
	case postback.ErrOverloaded:
		advice = "v2 is too slow for this load, or max_conns is too low"
	case postback.ErrUpstreamTimeout, postback.ErrBrokenOff:
		advice = "check v2's status and the network; callers that send again may send the record twice"
	}
	if c := notDelivered.check(h.logger); c != nil {
		c.Write(zap.String("code", refused.Code), zap.String("upstream", way.host), zap.Error(err), zap.String("advice", advice))
	}
}

// warnOfAnswer tells of an answer by which v2 asks for the record again later.
func (h *Handler) warnOfAnswer(status int, way *route) {
	if status < http.StatusInternalServerError && status != http.StatusTooManyRequests {
		return
	}
	if c := notTaken.check(h.logger); c != nil {
		c.Write(zap.Int("status", status), zap.String("upstream", way.host),
			zap.String("advice", "check v2's status; the callers have got this answer, and must send again what they do not want to lose"))
	}
}

// warnOfKept tells of a record that v2 did not take and that is in the spool.
func warnOfKept(logger *zap.Logger, result *spool.Result, host string) {
	if c := kept.check(logger); c != nil {
		c.Write(zap.Int("status", result.Status), zap.String("upstream", host), zap.Error(result.Err),
			zap.String("advice", "check v2's status and the way there; the records are delivered when it takes them again"))
	}
}

// warnOfDeadLetter tells of a record that nobody tries to deliver any more.
func warnOfDeadLetter(logger *zap.Logger, reason spool.Fate, result *spool.Result, host string) {
	if c := deadLetter.check(logger); c != nil {
		c.Write(zap.String("reason", string(reason)), zap.Int("status", result.Status), zap.String("upstream", host),
			zap.String("advice", "look at it with td-spool list --dead, and replay or drop it; how many there are is in the metrics"))
	}
}

// warnOfUnkept tells of a record for which the spool has no room.
func (h *Handler) warnOfUnkept(refused *postback.Refusal, err error, way *route) {
	advice := "see to the spool's disk or cluster; the callers have got 503"
	switch refused {
	case postback.ErrOverloaded:
		advice = "a record that is kept counts four times in max_buffered: raise it and with it GOMEMLIMIT; the callers have got 503"
	case postback.ErrSpoolFull:
		advice = "v2 has been away for too long for max_size: raise it, or drop dead letters with td-spool; the callers have got 503"
	}
	if c := notKept.check(h.logger); c != nil {
		c.Write(zap.String("code", refused.Code), zap.String("upstream", way.host), zap.Error(err), zap.String("advice", advice))
	}
}
