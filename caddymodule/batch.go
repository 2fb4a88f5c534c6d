package caddymodule

import (
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// This file sends records that were kept by v2's batch API. Which of them share a
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
	var t upstream.Trip
	answer, sent, err := s.DeliverBatch(to, records, &t)
	countTrip(&t)
	result := spool.BatchResult{Result: resultOf(&t, err), Sent: sent}
	for _, record := range records {
		result.Plain += len(record)
	}
	if result.Err == nil {
		result.Receipts = receiptsOf(answer, len(records), to.Key)
	}
	return result
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
