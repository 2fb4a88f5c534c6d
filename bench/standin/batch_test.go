package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestReceipts(t *testing.T) {
	for _, n := range []int{1, 2, maxEvents} {
		var answer struct {
			Receipts []struct {
				Success bool
				UUID    string
			}
		}
		if err := json.Unmarshal(receipts(n), &answer); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if len(answer.Receipts) != n || !answer.Receipts[n-1].Success || len(answer.Receipts[n-1].UUID) != 36 {
			t.Errorf("%d: %+v", n, answer.Receipts)
		}
	}
}

func TestCountEvents(t *testing.T) {
	event := `{"a":1,"uuid":"5bd3a4b1-60a5-4d4c-9d59-0f4d3a3d6c2e"}`
	for _, tt := range []struct {
		text  string
		count int
		holds bool
	}{
		{batchHead + event + batchTail, 1, true},
		{batchHead + event + "," + event + batchTail, 2, true},
		{batchHead + strings.Repeat(event+",", maxEvents-1) + event + batchTail, maxEvents, true},
		{batchHead + strings.Repeat(event+",", maxEvents) + event + batchTail, 0, false},
		{batchHead + event + event + batchTail, 2, false},
		{batchHead + event + `,{"a":2}` + batchTail, 1, false},
		{batchHead + batchTail, 0, false},
		{event, 0, false},
		{"", 0, false},
	} {
		if n := countEvents([]byte(tt.text)); n != tt.count {
			t.Errorf("%.80s: %d events, not %d", tt.text, n, tt.count)
		}
		if got := holds([]byte(tt.text), tt.count); tt.count > 0 && got != tt.holds {
			t.Errorf("%.80s: holds %v", tt.text, got)
		}
	}
}

func TestIsTable(t *testing.T) {
	for uri, want := range map[string]bool{
		"/db/tbl": true, "/db/tbl07": true, "/db/tbl7": false, "/db/tbl0a": false, "/db/tbl007": false, "/db/tb": false, "/db/tbl?07": false,
	} {
		if got := isTable([]byte(uri), []byte("/db/tbl")); got != want {
			t.Errorf("%s: %v", uri, got)
		}
	}
}
