package caddymodule

import (
	"bytes"
	"cmp"
	"net/http"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// This file sends records by v2's batch API. Which of those that were kept share a
// request, and what becomes of each, is in package spool.

// Part makes of a record what it is in a batch. It says no to one that must go
// alone.
func (s upstreamSender) Part(e spool.Entry) (spool.Part, bool) {
	if e.Namespace == [16]byte{} { // a repeat could not be told from another record
		return spool.Part{}, false
	}
	group, record, ok := postback.ToBatch(e.Data, e.Arrival, postback.RecordUUID(e.Namespace, uint64(e.ID)))
	if !ok {
		return spool.Part{}, false
	}
	return spool.Part{Group: group.String(), Record: record}, true
}

// SendBatch sends records of one group in one request.
func (s upstreamSender) SendBatch(group string, records [][]byte) spool.BatchResult {
	to, _ := postback.ParseBatchGroup(group) // Part has made it
	result, t := deliverBatch(s.Client, to, records)
	countTrip(&t)
	s.warnOfBatch(to, &result)
	return result
}

// unreadReceipts is told of an answer 200 whose receipts say nothing.
const unreadReceipts = "200, with receipts that cannot be read, or not one for each record"

// deliverBatch sends records of one group in one request, and counts it as a batch.
// If v2 takes it, but says of its records what cannot be understood, one of them may not
// be taken: then the status is 206.
func deliverBatch(client *upstream.Client, to postback.BatchGroup, records [][]byte) (result spool.BatchResult, t upstream.Trip) {
	answer, sent, err := client.DeliverBatch(to, records, &t)
	result = spool.BatchResult{Result: resultOf(&t, err), Sent: sent}
	if result.Status == 0 && !result.Ambiguous {
		result.Sent = 0 // v2 was not reached
	}
	for _, record := range records {
		result.Plain += len(record)
	}
	countBatch(len(records), &result)
	if result.Err == nil {
		result.Receipts = receiptsOf(answer, len(records), to.Key)
	}
	if result.Receipts == nil && result.Status == http.StatusOK && bytes.Contains(answer, []byte("receipts")) {
		result.Status, result.Words = http.StatusPartialContent, unreadReceipts
	}
	return result, t
}

// receiptsOf reads v2's answers to n single records; nil if it gave none. It may
// quote the key.
func receiptsOf(answer []byte, n int, key string) []spool.Receipt {
	read, ok := postback.ReadReceipts(answer, n, key)
	if !ok {
		return nil
	}
	receipts := make([]spool.Receipt, n)
	for i, r := range read {
		receipts[i] = spool.Receipt(r)
	}
	return receipts
}

// ofRecordsOrKey reports whether v2 refuses a batch with this status for its records or
// their key, and not since it takes none.
func ofRecordsOrKey(status int) bool {
	r := spool.Result{Status: status}
	return r.OfRecords() || r.OfKey()
}

// warnOfBatch tells of a batch that v2 did not take, or not whole.
func (s upstreamSender) warnOfBatch(to postback.BatchGroup, result *spool.BatchResult) {
	key := postback.Credentials{WriteKey: to.Key}
	account := key.Account()
	whose := keyOwner{owner{account, postback.Destination{Database: to.Database, Table: to.Table}}, to.Key}
	logger := caddy.Log().Named(handlerID)
	switch {
	case result.NotTaken():
		warnOfKept(logger, &result.Result, s.host, whose)
	case result.Status >= http.StatusMultipleChoices:
		result.Account, result.Fingerprint = cmp.Or(account, "none"), fingerprintOf(to.Key)
		if !ofRecordsOrKey(result.Status) {
			warnOfNoBatches(logger, &result.Result, s.host)
		}
	default:
		for _, r := range result.Receipts {
			if !r.Taken {
				result.Account, result.Fingerprint = cmp.Or(account, "none"), fingerprintOf(to.Key)
				warnOfPart(logger, result.Status, r.Words, s.host, whose)
				break
			}
		}
	}
}
