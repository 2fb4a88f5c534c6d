package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// BenchmarkAppend is what a cluster of three on this machine keeps, each server
// with a sync for what it writes.
func BenchmarkAppend(b *testing.B) {
	for _, producers := range []int{32, 128} {
		b.Run(fmt.Sprintf("%d producers", producers), func(b *testing.B) {
			l := open(b, cluster(b), func(c *Config) { c.MaxSize = 256 << 20 })
			record := spool.Record{Arrival: arrival, Data: make([]byte, 512)}
			times := make([]time.Duration, b.N)
			var next atomic.Int64
			var all sync.WaitGroup
			b.ResetTimer()
			for range producers {
				all.Go(func() {
					for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
						began := time.Now()
						if err := l.Append(testQueue, record); err != nil {
							b.Error(err)
							return
						}
						times[i] = time.Since(began)
					}
				})
			}
			all.Wait()
			b.StopTimer()
			slices.Sort(times)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(times[b.N/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(times[b.N*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkTake is how fast one gateway empties a queue, of one account's records and
// of many accounts'.
func BenchmarkTake(b *testing.B) {
	for _, accounts := range []int{1, 20} {
		b.Run(fmt.Sprintf("%d accounts", accounts), func(b *testing.B) {
			l := open(b, cluster(b), func(c *Config) { c.MaxSize, c.Account = 256<<20, accountOf })
			pad := strings.Repeat("x", 400)
			var all sync.WaitGroup
			var next atomic.Int64
			for range 500 {
				all.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						if err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: fmt.Appendf(nil, "account%d %s", i%int64(accounts), pad)}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			all.Wait()
			q := l.Queue(testQueue)
			takes := 0
			b.ResetTimer()
			for taken := 0; taken < b.N; {
				entries, err := q.Take(context.Background(), 512)
				if err != nil {
					b.Fatal(err)
				}
				for _, e := range entries {
					q.Ack(e)
				}
				taken += len(entries)
				takes++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "taken/s")
			b.ReportMetric(float64(b.N)/float64(takes), "records/take")
			depth(b, l, testQueue, 0, 0)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
