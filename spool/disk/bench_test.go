package disk

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

func BenchmarkAppend(b *testing.B) {
	for _, producers := range []int{1, 32, 128} {
		b.Run(map[int]string{1: "1", 32: "32", 128: "128"}[producers], func(b *testing.B) {
			d := open(b, Config{Dir: b.TempDir(), MaxSize: 40 << 30})
			data := bytes.Repeat([]byte("x"), 512)
			var left atomic.Int64
			left.Store(int64(b.N))
			latencies := make([][]time.Duration, producers)
			before := cpu()
			b.ResetTimer()
			var wg sync.WaitGroup
			for p := range producers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						started := time.Now()
						if err := d.Append(q1, spool.Record{Arrival: started, Data: data}); err != nil {
							b.Error(err)
							return
						}
						latencies[p] = append(latencies[p], time.Since(started))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			all := slices.Sorted(slices.Values(slices.Concat(latencies...)))
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDrain gives out a backlog and takes it as delivered, as batches are: some
// hundred records at a time, acked by several goroutines.
func BenchmarkDrain(b *testing.B) {
	cfg := Config{Dir: b.TempDir(), MaxSize: 40 << 30}
	d := open(b, cfg)
	data := bytes.Repeat([]byte("x"), 450)
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(b.N))
	for range 512 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				_ = d.Append(q1, spool.Record{Data: data})
			}
		})
	}
	wg.Wait()
	shut(b, d)
	d = open(b, cfg)
	before := cpu()
	b.ReportAllocs()
	b.ResetTimer()
	q := d.Queue(q1)
	taken := make(chan []spool.Entry, 8)
	for range 8 {
		wg.Go(func() {
			for entries := range taken {
				for _, e := range entries {
					q.Ack(e)
				}
			}
		})
	}
	for n := 0; n < b.N; {
		entries, err := q.Take(b.Context(), 512)
		if err != nil {
			b.Fatal(err)
		}
		n += len(entries)
		taken <- entries
	}
	close(taken)
	wg.Wait()
	shut(b, d)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkLive appends from 128 callers, each of which takes 40 µs of a processor for
// a request, while what was appended is taken and acked 200 ms later, as batches are.
func BenchmarkLive(b *testing.B) {
	d := open(b, Config{Dir: b.TempDir(), MaxSize: 40 << 30})
	data := bytes.Repeat([]byte("x"), 512)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	delivered := make(chan struct{})
	go deliverBatches(ctx, d.Queue(q1), b.N, delivered)
	var left atomic.Int64
	left.Store(int64(b.N))
	latencies := make([][]time.Duration, 128)
	before := cpu()
	b.ResetTimer()
	var wg sync.WaitGroup
	for p := range latencies {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				started := time.Now()
				if err := d.Append(q1, spool.Record{Arrival: started, Data: data}); err != nil {
					b.Error(err)
					return
				}
				latencies[p] = append(latencies[p], time.Since(started))
				for from := time.Now(); time.Since(from) < 40*time.Microsecond; {
				}
			}
		})
	}
	wg.Wait()
	took := b.Elapsed()
	<-delivered
	b.StopTimer()
	all := slices.Sorted(slices.Values(slices.Concat(latencies...)))
	b.ReportMetric(float64(b.N)/took.Seconds(), "records/s")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(all[len(all)*999/1000].Microseconds())/1000, "p99.9-ms")
}

// deliverBatches takes records, and acks them 200 ms later.
func deliverBatches(ctx context.Context, q spool.Queue, n int, done chan struct{}) {
	defer close(done)
	for taken := 0; taken < n; {
		entries, err := q.Take(ctx, 512)
		if err != nil {
			return
		}
		taken += len(entries)
		time.AfterFunc(200*time.Millisecond, func() {
			for _, e := range entries {
				q.AckSafe(e)
			}
		})
	}
}
