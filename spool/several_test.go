package spool_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// The records with several events of these tests: "several" and the events, which are
// "group:name", each on a line.
const severalMark = "several\n"

func several(events ...string) string { return severalMark + strings.Join(events, "\n") }

func readSeveral(data []byte) (group string, events [][]byte, ok bool) {
	lines, ok := bytes.CutPrefix(data, []byte(severalMark))
	if !ok {
		return "", nil, false
	}
	name, _, _ := bytes.Cut(lines, []byte(":"))
	return string(name), bytes.Split(lines, []byte("\n")), true
}

func restOf(data []byte, left []int) []byte {
	_, events, _ := readSeveral(data)
	var rest []string
	for _, n := range left {
		rest = append(rest, string(events[n]))
	}
	return []byte(several(rest...))
}

// runSeveral is run with such records. Others go alone.
func runSeveral(t testing.TB, how spool.Delivery) (*worker, *batchServer) {
	t.Helper()
	v2 := &batchServer{}
	how.SendBatch, how.Events, how.Rest = v2.send, readSeveral, restOf
	return run(t, how), v2
}

// Such a record goes in a request of its own, at once and in the order of its events,
// whether others share requests or not.
func TestSeveralGoTogether(t *testing.T) {
	for name, batching := range map[string]spool.Batching{"without batches": {}, "with batches": {Most: 500, Wait: time.Minute}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				how := spool.Delivery{Limits: spool.Limits{Batching: batching}}
				how.Part = func(e spool.Entry) (spool.Part, bool) {
					if strings.HasPrefix(string(e.Data), severalMark) {
						t.Error("a record with several events is asked for its part")
					}
					return spool.Part{Group: "a", Record: e.Data}, true
				}
				w, v2 := runSeveral(t, how)
				w.queue.append(several(named("a", 500)...), several("b:1"), "a:single")
				w.expect(t, map[state]int{acked: 3 - min(batching.Most, 1), held: min(batching.Most, 1)})
				slices.SortFunc(v2.batches, func(a, b []string) int { return len(b) - len(a) })
				if len(v2.batches) != 2 || !slices.Equal(v2.batches[0], named("a", 500)) || !slices.Equal(v2.batches[1], []string{"b:1"}) {
					t.Errorf("requests with %d events", v2.sizes())
				}
				time.Sleep(time.Minute)
				w.expect(t, map[state]int{acked: 3})
				if n := w.toldOf(spool.Delivered); n != 3 {
					t.Errorf("%d records are told to be delivered, want 3", n)
				}
			})
		})
	}
}
