// Package migration knows who sends what through the gateway, and what is left to
// change before a caller can do without it. It decides by a plan which calls already go
// to v2, and which still to the legacy host. It has no HTTP and no Caddy in it: the
// handler tells it of each call.
package migration

import (
	"iter"
	"math/bits"
)

// Finding is one thing about a call that its owner should know before it goes to v2
// without the gateway.
type Finding uint8

// The findings: what the gateway changes in a call, what is refused, and what is
// worth a note.
const (
	FromQuery Finding = iota
	KeyInURL
	AuthorizationDropped
	BodyTypeMended
	MarkRemoved
	PathMended
	EncodingMended
	AnsweredWithImage
	AnsweredWithRedirect
	ValueFilled
	JSSDK
	MobileSDK
	SeveralEvents
	PlainHTTP
	LegacyPath

	InvalidPath
	InvalidWriteKey
	InvalidRequest
	MissingWriteKey
	RedirectNotAllowed
	NotFound
	MethodNotAllowed
	RequestTimeout
	PayloadTooLarge
	HeadersTooLarge
	UnknownRegion
	UnknownKey
	UnknownDatabase
	RefusedByV2

	TimeIgnored
	LegacyRefused
	BodyCut
	UnusualKey
	CutKey
	TemplateKey

	findings // how many there are
)

// FindingKind says what a finding means for a caller that goes to v2 by itself.
type FindingKind uint8

// The kinds of findings.
const (
	Changed FindingKind = iota // the gateway changes it: v2 would lose the call, or take it otherwise
	Refused                    // it is not taken, here or at v2
	Noted                      // it goes on as it is, and may not be what its owner means
)

var findingKindNames = [...]string{"changed", "refused", "noted"}

// String is the kind's name in reports.
func (k FindingKind) String() string { return findingKindNames[k] }

// findingTexts has each finding's name, kind and advice.
var findingTexts = [findings]struct {
	name   string
	kind   FindingKind
	advice string
}{
	FromQuery:            {"from_query", Changed, "Send the record as one JSON object, as the body of a POST: v2 takes none from a query."},
	KeyInURL:             {"key_in_url", Changed, "Send the write key in the header X-TD-Write-Key: v2 reads no key in the URL, and answers 200 without one."},
	AuthorizationDropped: {"authorization_dropped", Changed, "Send Authorization only as TD1 with the write key, or not at all: v2 would use it before every other key."},
	BodyTypeMended:       {"body_type_mended", Changed, "Send Content-Type: application/json with the record."},
	MarkRemoved:          {"mark_removed", Changed, "Send the JSON without a byte-order mark before it."},
	PathMended:           {"path_mended", Changed, "Write the path as /postback/v3/event/{database}/{table}, with single slashes and none at its end."},
	EncodingMended:       {"encoding_mended", Changed, "Encode text as UTF-8: what is no UTF-8 arrives as U+FFFD."},
	AnsweredWithImage:    {"answered_with_image", Changed, "Send with fetch in place of an image: v2 answers with JSON, and sendBeacon cannot send the header with the key."},
	AnsweredWithRedirect: {"answered_with_redirect", Changed, "Send the record, and go to the other page by yourself: v2 does not redirect."},
	ValueFilled:          {"value_filled", Changed, "Send the value itself as a column: v2 does not fill td_ip, td_ua or td_global_id."},
	JSSDK:                {"js_sdk", Changed, "Use td-js-sdk 4, which speaks v2's batch API: v2 has no /js/v3/event."},
	MobileSDK:            {"mobile_sdk", Changed, "Use version 1 of the mobile SDK, which speaks v2's batch API: v2 has no /android/v3/event and no /ios/v3/event."},
	SeveralEvents:        {"several_events", Changed, "Send the events as {\"events\":[…]} to v2's batch API, /{database}/{table}, at most 500 in a request."},
	PlainHTTP:            {"plain_http", Changed, "Send to https: the gateway adds TLS on the way to v2."},

	LegacyPath: {"legacy_path", Changed, "See what it wants of the legacy host: v2 has nothing at this path, and migrate sends it on only as long as that host lives."},

	InvalidPath:        {"invalid_path", Refused, "Write the path as /postback/v3/event/{database}/{table}, in letters, digits and _."},
	InvalidWriteKey:    {"invalid_write_key", Refused, "Send the write key as Treasure Data shows it, 1234/ and hexadecimal digits, once and without quotes."},
	InvalidRequest:     {"invalid_request", Refused, "Send one JSON object, whole, as the body of a POST."},
	MissingWriteKey:    {"missing_write_key", Refused, "Send the write key in the header X-TD-Write-Key."},
	RedirectNotAllowed: {"redirect_not_allowed", Refused, "Have the operator add the host of td_redirect to redirect_hosts, or go to the other page by yourself."},
	NotFound:           {"not_found", Refused, "Send to /postback/v3/event/{database}/{table}: the gateway serves nothing at this path."},
	MethodNotAllowed:   {"method_not_allowed", Refused, "Use POST, with the record as its body."},
	RequestTimeout:     {"request_timeout", Refused, "Send the whole body without a pause: it did not arrive in time."},
	PayloadTooLarge:    {"payload_too_large", Refused, "Send smaller records: v2 takes at most 1,048,064 bytes."},
	HeadersTooLarge:    {"headers_too_large", Refused, "Put the record into the body, and send fewer or shorter headers."},
	UnknownRegion:      {"unknown_region", Refused, "Send to a host name of the legacy service, so that the region can be told."},
	UnknownKey:         {"unknown_key", Refused, "Use a write key that the operator knows, or have the operator add this one to keys."},
	UnknownDatabase:    {"unknown_database", Refused, "Send to a database that the operator knows, or have the operator add this one to keys."},
	RefusedByV2:        {"refused_by_v2", Refused, "Send one JSON object as the body. If it is one already, v2 refuses the record or its key: look up v2's own words in the gateway's log."},

	TimeIgnored:   {"time_ignored", Noted, "Send td_record_time in UNIX seconds, at most 7 days old and 3 days ahead: v2 ignores any other."},
	LegacyRefused: {"legacy_refused", Noted, "Mend or stop this caller: the legacy host refuses it today."},
	BodyCut:       {"body_cut", Noted, "See why its connections end early: the body did not arrive whole."},
	UnusualKey:    {"unusual_key", Noted, "Compare the write key with the one in Treasure Data, 1234/ and hexadecimal digits: v2 answers 200 to a wrong one."},
	CutKey:        {"cut_key", Noted, "Compare the write key with the one in Treasure Data: a part of it seems to be missing."},
	TemplateKey:   {"template_key", Noted, "Put the write key in the place of the template's word: it was sent as it stands there."},
}

// findingByName finds a finding by its name.
var findingByName = func() map[string]Finding {
	byName := make(map[string]Finding, findings)
	for f := range findings {
		byName[f.String()] = f
	}
	return byName
}()

// String is the finding's name in reports.
func (f Finding) String() string { return findingTexts[f].name }

// Kind says what the finding means for a caller that goes to v2 by itself.
func (f Finding) Kind() FindingKind { return findingTexts[f].kind }

// Advice is a sentence or two that say what the owner of the caller should change.
func (f Finding) Advice() string { return findingTexts[f].advice }

// FindingOf finds the finding with this name. The code of a refusal is the name of
// its finding; codes that speak of the gateway or of v2, not of the call, have none.
func FindingOf(name string) (f Finding, ok bool) {
	f, ok = findingByName[name]
	return f, ok
}

// Findings is a set of findings. The zero value has none.
type Findings uint64

// Add adds a finding.
func (s *Findings) Add(f Finding) { *s |= 1 << f }

// Has reports whether a finding is in the set.
func (s Findings) Has(f Finding) bool { return s&(1<<f) != 0 }

// All has the findings of the set, in the order in which they are declared.
func (s Findings) All() iter.Seq[Finding] {
	return func(yield func(Finding) bool) {
		for ; s != 0; s &= s - 1 {
			if !yield(Finding(bits.TrailingZeros64(uint64(s)))) { //nolint:gosec // G115: at most 64
				return
			}
		}
	}
}

// legacyFindings has the findings of which one is enough to make a call's form one
// that v2 does not take as it is. That a body came too slowly says nothing of its form.
var legacyFindings = func() (set Findings) {
	for f := range findings {
		if f.Kind() != Noted && f != RequestTimeout {
			set.Add(f)
		}
	}
	return set
}()

// LegacyForm reports whether a call with these findings has a form that v2 would not
// take as it is: something of it was changed or refused.
func (s Findings) LegacyForm() bool { return s&legacyFindings != 0 }
