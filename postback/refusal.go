package postback

import (
	"fmt"
	"net/http"
)

// Refusal is a request that the gateway does not forward. A caller gets it as
// JSON: {"error":code,"message":message}. The message says what to change and
// never holds a key, a query or a body.
type Refusal struct {
	Status  int
	Code    string
	Message string

	// RetryAfter, in seconds, tells callers when to come back; 0 for never.
	RetryAfter int

	// AsAsked says that the answer has the form that the query asks for: a pixel gets
	// its image.
	AsAsked bool

	// BodyLost says that the body could not be read: nothing of it is left to
	// wait for.
	BodyLost bool
}

// RefusalCodes has the codes of all refusals, for metrics that show each of them
// before it happens.
var RefusalCodes = []string{
	"invalid_path", "invalid_write_key", "invalid_request", "missing_write_key", "unknown_key", "unknown_database", "redirect_not_allowed",
	"not_found", "method_not_allowed", "request_timeout", "payload_too_large", "headers_too_large", "unknown_region",
	"upstream_unreachable", "upstream_timeout", "spool_full", "spool_unavailable", "overloaded", "loop_detected",
}

// The refusals that say the same each time.
var (
	NotFound = &Refusal{
		Status: http.StatusNotFound, Code: "not_found",
		Message: "there is nothing at this path; events go to " + eventPrefix + "{database}/{table} or " + jsEventPrefix + "{database}/{table}, several of them to /js/v3/event, /android/v3/event or /ios/v3/event",
	}
	SurfaceOff = &Refusal{
		Status: http.StatusNotFound, Code: "not_found",
		Message: "the gateway does not serve this kind of path: its operator can switch it on with the option surfaces",
	}
	NoGlobalID = &Refusal{
		Status: http.StatusNotFound, Code: "not_found",
		Message: "there is no global id here: it is in a cookie of the legacy host, which the gateway cannot read",
	}
	MethodNotAllowed = &Refusal{
		Status: http.StatusMethodNotAllowed, Code: "method_not_allowed",
		Message: "use POST, or GET for a record in the query",
	}
	PostOnly = &Refusal{
		Status: http.StatusMethodNotAllowed, Code: "method_not_allowed",
		Message: "use POST, with the events in the body",
	}
	MissingKey = &Refusal{
		Status: http.StatusForbidden, Code: "missing_write_key",
		Message: "send the write key as ?td_write_key=, in an X-TD-Write-Key header or as Authorization: TD1",
	}
	UnknownKey = &Refusal{
		Status: http.StatusForbidden, Code: "unknown_key", AsAsked: true,
		Message: "the gateway's operator does not know this write key; compare it with the one that was given to you, and ask the operator to add it",
	}
	UnknownDatabase = &Refusal{
		Status: http.StatusForbidden, Code: "unknown_database", AsAsked: true,
		Message: "the gateway's operator lets no records go to this database; check its name, and ask the operator to add it",
	}
	HeadersTooLarge = &Refusal{
		Status: http.StatusRequestHeaderFieldsTooLarge, Code: "headers_too_large",
		Message: fmt.Sprintf("the headers have more than %d bytes together; put the record into the body, and send fewer or shorter headers", MaxHeaders),
	}
	Overloaded = &Refusal{
		Status: http.StatusServiceUnavailable, Code: "overloaded", RetryAfter: 1,
		Message: "the gateway is at its limit; send the record again",
	}
	RedirectNotAllowed = &Refusal{
		Status: http.StatusBadRequest, Code: "redirect_not_allowed",
		Message: "the record was taken, but td_redirect must be an http or https URL to a host in the gateway's redirect_hosts",
	}
	NoRecord = &Refusal{
		Status: http.StatusBadRequest, Code: "invalid_request",
		Message: "there is no record; send one JSON object as the body, or in base64 as the parameter data",
	}
	BadData = &Refusal{
		Status: http.StatusBadRequest, Code: "invalid_request",
		Message: "the parameter data must be one JSON object in base64, percent-encoded once",
	}
	NoObject = &Refusal{
		Status: http.StatusBadRequest, Code: "invalid_request",
		Message: "the body must be one JSON object",
	}
	BatchBody = &Refusal{
		Status: http.StatusBadRequest, Code: "invalid_request",
		Message: "the body is one of v2's batch API by its Content-Type; send one JSON object as application/json, or give the SDK v2's own host and no path",
	}
	BadCallback = &Refusal{
		Status: http.StatusBadRequest, Code: "invalid_request",
		Message: "callback must be a name of letters, digits, _ and $, or several of them joined by dots, at most 128 bytes",
	}
	BodyCut = &Refusal{
		Status: http.StatusBadRequest, Code: "invalid_request", BodyLost: true,
		Message: "the body ended early or is framed wrongly; send it whole",
	}
	BodySlow = &Refusal{
		Status: http.StatusRequestTimeout, Code: "request_timeout", BodyLost: true,
		Message: "the body did not arrive in time; send it again",
	}
	UnknownRegion = &Refusal{
		Status: http.StatusMisdirectedRequest, Code: "unknown_region",
		Message: "the Host of the request is no legacy Postback host, so there is no region to forward to",
	}
	UpstreamUnreachable = &Refusal{
		Status: http.StatusBadGateway, Code: "upstream_unreachable",
		Message: "Postback v2 could not be reached; send the record again",
	}
	UpstreamBrokenOff = &Refusal{
		Status: http.StatusBadGateway, Code: "upstream_unreachable",
		Message: "Postback v2 broke off or gave no valid answer; the record may have arrived all the same",
	}
	NothingBehind = &Refusal{
		Status: http.StatusBadGateway, Code: "upstream_unreachable", BodyLost: true,
		Message: "the gateway leaves records to a handler behind it, and none has taken this one; tell its operator",
	}
	EventsNotTaken = &Refusal{
		Status: http.StatusServiceUnavailable, Code: "upstream_unreachable", RetryAfter: 5,
		Message: "Treasure Data does not take all of the events now; send all of them again: those that it has are dropped by their #UUID",
	}
	EventsLate = &Refusal{
		Status: http.StatusServiceUnavailable, Code: "upstream_timeout", RetryAfter: 5,
		Message: "Treasure Data has not taken all of the events in time; send all of them again: those that it has are dropped by their #UUID",
	}
	UpstreamTimeout = &Refusal{
		Status: http.StatusGatewayTimeout, Code: "upstream_timeout",
		Message: "Postback v2 did not answer in time; the record may have arrived all the same",
	}
	LegacyUnreachable = &Refusal{
		Status: http.StatusBadGateway, Code: "upstream_unreachable",
		Message: "the legacy host could not be reached; send the request again",
	}
	LegacyBrokenOff = &Refusal{
		Status: http.StatusBadGateway, Code: "upstream_unreachable",
		Message: "the legacy host broke off or gave no valid answer; the record may have arrived all the same",
	}
	LegacyTimeout = &Refusal{
		Status: http.StatusGatewayTimeout, Code: "upstream_timeout",
		Message: "the legacy host did not answer in time; the record may have arrived all the same",
	}
	LoopDetected = &Refusal{
		Status: http.StatusLoopDetected, Code: "loop_detected",
		Message: "the gateway has sent this request on before, and it has come back; tell its operator that the legacy host's name leads to the gateway",
	}
	SpoolFull = &Refusal{
		Status: http.StatusServiceUnavailable, Code: "spool_full", RetryAfter: 30,
		Message: "Treasure Data does not take records now, and the gateway has no room to keep more; send the record again later",
	}
	SpoolUnavailable = &Refusal{
		Status: http.StatusServiceUnavailable, Code: "spool_unavailable", RetryAfter: 5,
		Message: "Treasure Data does not take records now, and the gateway cannot keep them; send the record again later",
	}
)

func invalidPath(message string) *Refusal {
	return &Refusal{Status: http.StatusBadRequest, Code: "invalid_path", Message: message}
}

func invalidKey(message string) *Refusal {
	return &Refusal{Status: http.StatusBadRequest, Code: "invalid_write_key", Message: message}
}

// KeyRefused refuses events whose write key Treasure Data has refused, with this status.
func KeyRefused(status int) *Refusal {
	return &Refusal{
		Status: status, Code: "invalid_write_key",
		Message: "Treasure Data refuses the write key, or does not let it write to one of the tables; send the key as it was given to you",
	}
}

// TooLarge refuses a body by its declared size, or by the bytes read so far
// when none was declared.
func TooLarge(size, limit int64, declared bool) *Refusal {
	atLeast := ""
	if !declared {
		atLeast = "at least "
	}
	return &Refusal{
		Status: http.StatusRequestEntityTooLarge, Code: "payload_too_large",
		Message: fmt.Sprintf("the record has %s%d bytes; at most %d are taken", atLeast, size, limit),
	}
}
