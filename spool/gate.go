package spool

import "time"

// Gate says what may be sent to a v2 host now, by what v2 has answered before: that
// v2 cannot be reached, or says 5xx, speaks of the host; 429 of the account whose
// record it answers; any other answer of the record alone. The zero Gate is open.
type Gate struct {
	Circuit
	Accounts
}

// Allow reports whether a record of an account may be sent now. After true, the
// caller must call Answered or Forgo; otherwise the next try waits for a minute. A
// key without an account number stands for itself: only a hash of it is kept.
func (g *Gate) Allow(account string) bool {
	began := time.Now() // if the circuit opens meanwhile, there is nothing to give back
	if !g.Circuit.Allow() {
		return false
	}
	if !g.permit(account) {
		g.Circuit.Forgo(began)
		return false
	}
	return true
}

// Forgo gives back what Allow has allowed at sent, or before: the request is not
// sent.
func (g *Gate) Forgo(account string, sent time.Time) {
	g.Circuit.Forgo(sent)
	g.forgo(account, sent)
}

// Answered notes how sending a record went. sent is when it was allowed, or later.
func (g *Gate) Answered(account string, sent time.Time, r Result) {
	switch {
	case r.Status == statusTooManyRequests:
		g.Success()
		g.refuse(account, sent, r.RetryAfter)
	case r.NotTaken():
		g.Failure(sent, r.hostPause())
		g.forgo(account, sent)
	default:
		g.Success()
		g.accept(account, sent)
	}
}

// hostPause is how long v2 wants its host to be left alone. Only 503 speaks of that
// (RFC 9110 section 15.6.4).
func (r Result) hostPause() time.Duration {
	if r.Status != statusUnavailable {
		return 0
	}
	return r.RetryAfter
}
