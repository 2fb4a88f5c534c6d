package spool

import "time"

// This file says what a batch is: records that go to v2 together, in one request of
// its batch API. deliver.go sends them.

// Part is what a record is in a batch.
type Part struct {
	// Group names those that may share a request. It has a write key in it: it goes
	// nowhere but to SendBatch.
	Group string

	// Record is the record, as it is among the others.
	Record []byte
}

// Batching bounds the batches of a queue.
type Batching struct {
	// Most is how many records may share a request. With 0, each goes alone.
	Most int

	// Wait is how long a record waits at most for others to share its request.
	Wait time.Duration
}

// BatchResult is how sending a batch to v2 went.
type BatchResult struct {
	Result

	// Receipts are v2's answers to the single records, in their order; nil if it
	// gave none, or not as many as there were records.
	Receipts []Receipt

	// Plain is how many bytes the records had together, and Sent how many went to
	// v2 for them, the request's head included.
	Plain, Sent int
}

// Receipt is v2's answer to one record of a batch.
type Receipt struct {
	Taken bool
	Words string // in which v2 refused it, on one line and without keys
}
