package disk

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

const q1 = "https://us01.records.in.treasuredata.com"

func open(t testing.TB, cfg Config) *Disk {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func take(t testing.TB, d *Disk, n int) []spool.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var all []spool.Entry
	for len(all) < n {
		entries, err := d.Queue(q1).Take(ctx, n-len(all))
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(all), n, err)
		}
		all = append(all, entries...)
	}
	return all
}

func TestAppendTakeAck(t *testing.T) {
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	arrival := time.UnixMilli(1_700_000_000_123)
	for i := range 10 {
		if err := d.Append(q1, spool.Record{Arrival: arrival, Data: fmt.Appendf(nil, "record %d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range take(t, d, 10) {
		if string(e.Data) != fmt.Sprintf("record %d", i) || !e.Arrival.Equal(arrival) {
			t.Errorf("record %d is %q of %s", i, e.Data, e.Arrival)
		}
		if i != 3 {
			d.Queue(q1).Ack(e)
		}
	}
	if depth, _ := d.Depth(q1); depth.Records != 1 || !depth.Oldest.Equal(arrival) {
		t.Errorf("the depth is %+v, want one record of %s", depth, arrival)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, Config{Dir: dir})
	if depth, _ := d.Depth(q1); depth.Records != 1 {
		t.Errorf("the depth is %+v, want one record", depth)
	}
	if e := take(t, d, 1)[0]; string(e.Data) != "record 3" {
		t.Errorf("got %q, want record 3", e.Data)
	}
}
