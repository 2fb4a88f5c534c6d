package caddymodule

import (
	"net/http"
	"path"
	"strings"
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
	last    atomic.Int64 // when it was, by uptime; 0 for never
}

const warningPause = time.Minute

var processStart = time.Now()

// uptime is how long the process runs, and a minute, so that the first warning
// is due. A wall clock may jump: back by a day, and nothing would be logged for
// as long.
func uptime() time.Duration { return time.Since(processStart) + warningPause }

var (
	droppedAuthWarning = warning{message: "Authorization dropped beside a legacy key"}
	redirectWarning    = warning{message: "redirect refused"}
	memoryWarning      = warning{message: "record refused: max_buffered is used up"}
	undeliveredWarning = warning{message: "record not delivered"}
	unrelayedWarning   = warning{message: "record not delivered"} // v2's trouble must not hide the legacy host's
	loopWarning        = warning{message: "request refused: it has come back to the gateway"}
	answerWarning      = warning{message: "Postback v2 did not take a record"}
	limitWarning       = warning{message: "Postback v2 did not take a record"} // likewise
	keptWarning        = warning{message: "record kept for later"}
	keptLimitWarning   = warning{message: "record kept for later"} // one account's limit must not hide that v2 is down
	keptLegacyWarning  = warning{message: "record kept for later"} // nor must the legacy host's trouble
	keptPartWarning    = warning{message: "record kept for later"} // nor must a record that v2 refuses
	noBatchesWarning   = warning{message: "v2 takes no batches"}
	deadLetterWarning  = warning{message: "a kept record became a dead letter"}
	unkeptWarning      = warning{message: "record neither delivered nor kept"}
	eventsLeftWarning  = warning{message: "Postback v2 did not take all events of a request"}
	secretWarning      = warning{message: "the secret under which write keys are named cannot be kept"}
	reportWarning      = warning{message: "the report of callers cannot be kept"}
	planWarning        = warning{message: "the plan of the migration is not as it should be"}
	neverTakenWarning  = warning{message: "an event can never be taken, and its caller deletes it"}
)

// refusalWarnings has a kind for each status from 400 on: a key that is refused
// must not hide a record that is.
var refusalWarnings [100]warning

// keyFormWarnings has a kind for each form of a key that is probably wrong.
var keyFormWarnings = [len(postback.KeyFormNames)]warning{
	postback.KeyCut:      {message: unusualKeyMessage},
	postback.KeyTemplate: {message: unusualKeyMessage},
	postback.KeyUnusual:  {message: unusualKeyMessage},
}

const unusualKeyMessage = "write key of unusual form"

// keyFormAdvice is what to do about them: v2 answers 200, and loses the record.
var keyFormAdvice = [len(postback.KeyFormNames)]string{
	postback.KeyCut:      "a part of the key is missing: compare it with the one in Treasure Data, 1234/ and 40 hexadecimal digits",
	postback.KeyTemplate: "the caller sends what stands where its key belongs: have its owner set the key",
	postback.KeyUnusual:  "compare the caller's key with the one in Treasure Data, 1234/ and 40 hexadecimal digits",
}

// due reports whether the last warning is a minute ago, and notes this one.
func (w *warning) due() bool {
	now, last := int64(uptime()), w.last.Load()
	return now-last >= int64(warningPause) && w.last.CompareAndSwap(last, now)
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
func (h *Handler) warnOfKey(c *call) {
	if form := postback.KeyFormOf(c.Key()); form != postback.KeyUsual {
		countNamed(keyForms[form], fingerprintOf(c.Key()))
		if e := keyFormWarnings[form].check(h.logger); e != nil {
			e.Write(zap.Stringer("form", form), zap.Inline(ownerOf(c)), zap.Stringer("surface", c.Kind),
				zap.String("advice", keyFormAdvice[form]+"; v2 answers 200 to a wrong key and loses the record"))
		}
	}
	if len(c.r.Header["Authorization"]) > 0 && c.Authorization == "" {
		if e := droppedAuthWarning.check(h.logger); e != nil {
			e.Write(zap.Inline(loggedNames(c.Destination)),
				zap.String("advice", "nothing, if the caller sends it for something else; if it is meant for v2, send Authorization: TD1 with no key in the URL, and to /js/ with no other key at all"))
		}
	}
}

// warnOfRedirect tells of a td_redirect that is not followed. The record is
// sent all the same.
func (h *Handler) warnOfRedirect(c *call) {
	if e := redirectWarning.check(h.logger); e != nil {
		e.Write(zap.Inline(loggedNames(c.Destination)),
			zap.String("advice", "if the target of td_redirect is yours, add its host to redirect_hosts"))
	}
}

// warnOfFullMemory tells of a record that is refused because all bodies together
// have become too large.
func (h *Handler) warnOfFullMemory() {
	if e := memoryWarning.check(h.logger); e != nil {
		e.Write(zap.Int64("max_buffered", h.MaxBuffered),
			zap.String("advice", "if v2 is slow, see to that; otherwise raise max_buffered and with it GOMEMLIMIT, or add a gateway"))
	}
}

// warn tells of a record that is neither at v2 nor in the spool, or not for
// certain.
func (h *Handler) warn(of *warning, c *call, refused *postback.Refusal, err error, advice string) {
	if e := of.check(h.logger); e != nil {
		e.Write(zap.String("code", refused.Code), zap.String("upstream", c.to.host), zap.Error(err), zap.Inline(ownerOf(c)), zap.String("advice", advice))
	}
}

// warnOfAnswer tells of an answer by which v2 refuses the record, or asks for it
// again later.
func (h *Handler) warnOfAnswer(c *call) {
	switch status := c.trip.Status; {
	case spoolTakes(status):
		of, advice := &answerWarning, "check v2's status"
		if status == http.StatusTooManyRequests {
			of, advice = &limitWarning, limitAdvice
		}
		if e := of.check(h.logger); e != nil {
			e.Write(zap.Int("status", status), zap.String("upstream", c.to.host), words(c.trip.Words), zap.Inline(ownerOf(c)),
				zap.String("advice", advice+"; the callers have got this answer, and must send again what they do not want to lose"))
		}
	case status >= http.StatusBadRequest:
		if refusalWarnings[status-http.StatusBadRequest].due() {
			h.logger.Warn("Postback v2 refused a record", zap.Int("status", status), zap.String("upstream", c.to.host), words(c.trip.Words), zap.Inline(ownerOf(c)),
				zap.String("advice", refusalAdvice(status)))
		}
	}
}

// warnOfEvents tells of an answer of v2's, or that there is none, for which events of a
// call with several are not taken, or one of them never will be; and whether those that
// are not taken are kept.
func (h *Handler) warnOfEvents(c *call, to postback.Destination, r *spool.Result, kept bool) {
	if kept && r.NotTaken() {
		warnOfKept(h.logger, r, c.to.host, eventsOwner{keyOwner{owner{c.Account(), to}, c.Key()}, c.events})
		return
	}
	noteResult(c.to.host, r)
	again := "; the callers have got 503, and send all of their events again"
	if kept {
		again = "; the events are kept, and are dead letters if that does not change"
	}
	var of *warning
	var advice string
	switch {
	case r.Status == 0:
		of, advice = &undeliveredWarning, "check v2's host in DNS, the way there, and v2's status"+again
	case r.Status == http.StatusTooManyRequests:
		of, advice = &limitWarning, limitAdvice+again
	case r.NotTaken():
		of, advice = &answerWarning, "check v2's status"+again
	case ofRecordsOrKey(r.Status):
		of, advice = &refusalWarnings[r.Status-http.StatusBadRequest], refusalAdvice(r.Status)
		if r.OfRecords() {
			advice += "; the caller deletes the event, and the others are taken"
		}
	case r.Status < http.StatusMultipleChoices: // it takes others, again and again
		of, advice = &eventsLeftWarning, "see v2's words"+again
	default:
		of, advice = &eventsLeftWarning, "see that upstream is a host with v2's batch API, and that nothing on the way keeps such requests from it"+again
	}
	if !of.due() {
		return
	}
	message := of.message
	if message == "" {
		message = "Postback v2 refused a record"
	}
	h.logger.Warn(message, zap.Int("status", r.Status), zap.String("upstream", c.to.host), zap.Error(r.Err), words(r.Words), zap.Inline(eventsOwner{keyOwner{owner{c.Account(), to}, c.Key()}, c.events}),
		zap.String("advice", advice))
}

// warnOfFaults tells of an event that v2 was not asked about, as it would refuse it.
func (h *Handler) warnOfFaults(c *call, events *postback.Keen) {
	fault, to := events.FirstFault()
	if fault == 0 {
		return
	}
	if e := neverTakenWarning.check(h.logger); e != nil {
		e.Write(zap.Stringer("reason", fault), zap.Inline(keyOwner{owner{c.Account(), to}, c.Key()}),
			zap.String("advice", "have the app or the script send it as the reason says; how many requests have such events is in the metrics as some_refused"))
	}
}

// words are v2's own about a record that it did not take, if it said any.
func words(said string) zap.Field {
	if said == "" {
		return zap.Skip()
	}
	return zap.String("words", said)
}

// refusalAdvice is what to do about a record that v2 refuses for good.
func refusalAdvice(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "compare what the caller sends with v2's words: the body must be one JSON object"
	case http.StatusUnauthorized, http.StatusForbidden:
		return "compare the caller's key with the one in Treasure Data, and see what its account may write"
	case http.StatusNotFound:
		return "check the names of the database and the table, and that upstream is a host of Postback v2"
	case http.StatusRequestEntityTooLarge:
		return "the record is larger than v2 takes: the caller must send less"
	default:
		return "see v2's words; sending the same again will not help"
	}
}

// limitAdvice is what to do about a 429.
const limitAdvice = "the account's rate limit: ask Treasure Data; other accounts go on"

// owner says whose record it is, for the log.
type owner struct {
	account string
	to      postback.Destination
}

func ownerOf(c *call) keyOwner { return keyOwner{owner{c.Account(), c.Destination}, c.Key()} }

// MarshalLogObject writes the owner for the log, with no key in a table's name.
func (o owner) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("account", o.account)
	return loggedNames(o.to).MarshalLogObject(enc)
}

// loggedNames are where a record belongs, for the log.
type loggedNames postback.Destination

// MarshalLogObject writes the names for the log.
func (n loggedNames) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	to := postback.Destination(n).Shown()
	enc.AddString("database", to.Database)
	enc.AddString("table", to.Table)
	return nil
}

// keyOwner is an owner whose key is known, and named.
type keyOwner struct {
	owner
	key string
}

// MarshalLogObject writes the owner for the log, and the name of its key.
func (o keyOwner) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	if o.key != "" {
		enc.AddString("fingerprint", fingerprintOf(o.key))
	}
	return o.owner.MarshalLogObject(enc)
}

// eventsOwner is the owner of a call with several events, and how many they are.
type eventsOwner struct {
	keyOwner
	events int
}

// MarshalLogObject writes the owner for the log.
func (o eventsOwner) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddInt("events", o.events)
	return o.keyOwner.MarshalLogObject(enc)
}

// keptOwner is the owner of a kept request, which is read only if it is logged.
type keptOwner []byte

// MarshalLogObject writes the owner for the log.
func (data keptOwner) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	kept, _ := postback.ReadKept(data) // what can be read of a damaged one
	names, table := path.Split(kept.Path)
	_, database := path.Split(strings.TrimSuffix(names, "/"))
	whose := owner{kept.Credentials.Account(), postback.Destination{Database: database, Table: table}}
	return keyOwner{whose, kept.Credentials.Key()}.MarshalLogObject(enc)
}

// warnOfKept tells of a record that v2 did not take and that is in the spool.
func warnOfKept(logger *zap.Logger, result *spool.Result, host string, owner zapcore.ObjectMarshaler) {
	noteResult(host, result)
	of, advice := &keptWarning, "check v2's status and the way there; the records are delivered when it takes them again"
	if result.Status == http.StatusTooManyRequests {
		of, advice = &keptLimitWarning, limitAdvice
	}
	if c := of.check(logger); c != nil {
		c.Write(zap.Int("status", result.Status), zap.String("upstream", host), zap.Error(result.Err), words(result.Words), zap.Inline(owner),
			zap.String("advice", advice))
	}
}

// warnOfKeptForLegacy is warnOfKept for a record that the legacy host did not take.
func warnOfKeptForLegacy(logger *zap.Logger, result *spool.Result, host string, owner zapcore.ObjectMarshaler) {
	if c := keptLegacyWarning.check(logger); c != nil {
		c.Write(zap.Int("status", result.Status), zap.String("upstream", host), zap.Error(result.Err), zap.Inline(owner),
			zap.String("advice", "check the legacy host and the way there; the records are delivered to it, and never to v2, when it takes them again"))
	}
}

// warnOfPart tells of a record that v2 refused in a batch, while it took others.
func warnOfPart(logger *zap.Logger, status int, said, host string, owner zapcore.ObjectMarshaler) {
	if c := keptPartWarning.check(logger); c != nil {
		c.Write(zap.Int("status", status), zap.String("upstream", host), words(said), zap.Inline(owner),
			zap.String("advice", "see v2's words: it refused some records of a batch; they are tried again, and are dead letters after five refusals"))
	}
}

// warnOfNoBatches tells of a batch that was refused for another reason than its
// records.
func warnOfNoBatches(logger *zap.Logger, result *spool.Result, host string) {
	if c := noBatchesWarning.check(logger); c != nil {
		c.Write(zap.Int("status", result.Status), zap.String("upstream", host), words(result.Words),
			zap.String("advice", "see that upstream is a host with v2's batch API, and that nothing on the way keeps such requests from it; or take batch out of spool. Kept calls with several events are dead letters then: replay them"))
	}
}

// warnOfDeadLetter tells of a record that nobody tries to deliver any more.
func warnOfDeadLetter(logger *zap.Logger, reason spool.Fate, result *spool.Result, host string) {
	account, fingerprint := zap.Skip(), zap.Skip()
	if result.Account != "" { // v2 has refused it
		account, fingerprint = zap.String("account", result.Account), zap.String("fingerprint", result.Fingerprint)
	}
	if c := deadLetterWarning.check(logger); c != nil {
		c.Write(zap.String("reason", string(reason)), zap.Int("status", result.Status), zap.String("upstream", host), words(result.Words), account, fingerprint,
			zap.String("advice", "look at it with td-spool list --dead, and replay or drop it; how many there are is in the metrics"))
	}
}
