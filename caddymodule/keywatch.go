package caddymodule

import (
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/migration"
)

// This file tells of keys that the report of callers has never seen before, and of those
// that came every day and come no more.

// newKeys is the counter of keySignals for keys that were never seen before.
var newKeys = keySignals.WithLabelValues("new")

// maxToldKeys is how many keys of a kind are named each time that the report is saved:
// somebody may try many.
const maxToldKeys = 10

// tellOfKeys counts and names the keys that are new in the report, or silent.
func (s *sharedReport) tellOfKeys(report *migration.Report, now time.Time) {
	signals := report.Signals(now)
	if n := len(signals.New); n > 0 {
		newKeys.Add(float64(n - 1))
		countNamed(newKeys, signals.New[n-1].Key)
	}
	s.silent.Store(int64(signals.Silent))
	s.watched.Store(true)
	advice := "if it is a caller of yours that has a new key, nothing; if not, a caller sends a wrong key, or a stranger sends through this gateway: say in keys which keys may be used"
	if signals.Full {
		advice = "the report is full, so this key may have been here before: raise rows. " + advice
	}
	logger := caddy.Log().Named(handlerID)
	tell(logger, signals.New, "a write key was never seen before", advice)
	advice = "if its callers were to move to v2 or to another key, nothing; if not, see whether they still send, and with which key"
	tell(logger, signals.Silenced, "a write key that came every day comes no more", advice)
}

// tell names keys in warnings. The last one says how many more there are.
func tell(logger *zap.Logger, keys []migration.Sighting, message, advice string) {
	for i, key := range keys[:min(len(keys), maxToldKeys)] {
		more := zap.Skip()
		if i == maxToldKeys-1 {
			more = zap.Int("more", len(keys)-maxToldKeys)
		}
		logger.Warn(message, zap.String("fingerprint", key.Key), zap.String("database", key.Database), zap.String("table", key.Table),
			zap.String("first_seen", key.First.Format(time.RFC3339)), zap.String("last_seen", key.Last.Format(time.RFC3339)), more, zap.String("advice", advice))
	}
}

// keyGauges says how many keys are silent, if there is a report.
type keyGauges struct{}

var keysSilent = newDesc("keys_silent",
	"Write keys that the report of callers has seen on each of seven days, and then not for 30 hours; after 7 days they count no more.")

// Describe sends the gauge's description.
func (keyGauges) Describe(descs chan<- *prometheus.Desc) { descs <- keysSilent }

// Collect sends the gauge. Before the report has been looked through there is none: a 0
// would look as if the keys had been there.
func (keyGauges) Collect(metrics chan<- prometheus.Metric) {
	if shown := shownReport.Load(); shown != nil && shown.watched.Load() {
		metrics <- prometheus.MustNewConstMetric(keysSilent, prometheus.GaugeValue, float64(shown.silent.Load()))
	}
}
