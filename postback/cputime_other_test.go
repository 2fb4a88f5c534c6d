//go:build !linux

package postback

import "time"

// cpuTime is how long run takes: here nobody says how much of that it has waited.
func cpuTime(run func()) time.Duration {
	began := time.Now()
	run()
	return time.Since(began)
}
