package caddymodule

import (
	"fmt"
	"net/http"
)

// refusal is a request that the gateway does not forward. A caller gets it as
// JSON: {"error":code,"message":message}. The message says what to change and
// never holds a key, a query or a body.
type refusal struct {
	status  int
	code    string
	message string

	// retryAfter, in seconds, tells callers when to come back; 0 for never.
	retryAfter int
}

// Error makes a refusal an error, for logs and tests.
func (f *refusal) Error() string { return f.code + ": " + f.message }

var (
	errNotFound = &refusal{
		status: http.StatusNotFound, code: "not_found",
		message: "only " + eventPrefix + "{database}/{table} is served here",
	}
	errMethod = &refusal{
		status: http.StatusMethodNotAllowed, code: "method_not_allowed",
		message: "use POST, or GET for a record in the query",
	}
	errMissingKey = &refusal{
		status: http.StatusForbidden, code: "missing_write_key",
		message: "send the write key as ?td_write_key=, in an X-TD-Write-Key header or as Authorization: TD1",
	}
	errOverloaded = &refusal{
		status: http.StatusServiceUnavailable, code: "overloaded", retryAfter: 1,
		message: "the gateway is at its limit; send the record again",
	}
	errRedirect = &refusal{
		status: http.StatusBadRequest, code: "redirect_not_allowed",
		message: "the record was taken, but td_redirect must be an http or https URL to a host in the gateway's redirect_hosts",
	}
	errBodyCut = &refusal{
		status: http.StatusBadRequest, code: "invalid_request",
		message: "the body ended early or is framed wrongly; send it whole",
	}
	errBodySlow = &refusal{
		status: http.StatusRequestTimeout, code: "request_timeout",
		message: "the body did not arrive in time; send it again",
	}
	errUnreachable = &refusal{
		status: http.StatusBadGateway, code: "upstream_unreachable",
		message: "Postback v2 could not be reached; send the record again",
	}
	errBrokenOff = &refusal{
		status: http.StatusBadGateway, code: "upstream_unreachable",
		message: "Postback v2 broke off or gave no valid answer; the record may have arrived all the same",
	}
	errUpstreamTimeout = &refusal{
		status: http.StatusGatewayTimeout, code: "upstream_timeout",
		message: "Postback v2 did not answer in time; the record may have arrived all the same",
	}
)

func invalidPath(message string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: "invalid_path", message: message}
}

func invalidKey(message string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: "invalid_write_key", message: message}
}

func unknownRegion() *refusal {
	return &refusal{
		status: http.StatusMisdirectedRequest, code: "unknown_region",
		message: "the Host of the request is no legacy Postback host, so there is no region to forward to",
	}
}

// tooLarge refuses a body by its declared size, or by the bytes read so far
// when none was declared.
func tooLarge(size, limit int64, declared bool) *refusal {
	atLeast := ""
	if !declared {
		atLeast = "at least "
	}
	return &refusal{
		status: http.StatusRequestEntityTooLarge, code: "payload_too_large",
		message: fmt.Sprintf("the record has %s%d bytes; at most %d are taken", atLeast, size, limit),
	}
}

var (
	errSpoolFull = &refusal{
		status: http.StatusServiceUnavailable, code: "spool_full", retryAfter: 30,
		message: "Postback v2 does not take records now, and the gateway has no room to keep more; send the record again later",
	}
	errSpoolUnavailable = &refusal{
		status: http.StatusServiceUnavailable, code: "spool_unavailable", retryAfter: 5,
		message: "Postback v2 does not take records now, and the gateway cannot keep them; send the record again later",
	}
)
