package caddymodule

import "time"

// saver saves something again and again.
type saver struct{ stop, stopped chan struct{} }

// startSaver calls save after each pause, until the saver ends.
func startSaver(pause time.Duration, save func()) *saver {
	s := &saver{make(chan struct{}), make(chan struct{})}
	go func() {
		defer close(s.stopped)
		ticker := time.NewTicker(pause)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				save()
			case <-s.stop:
				return
			}
		}
	}()
	return s
}

// end waits until the saver saves no more.
func (s *saver) end() {
	close(s.stop)
	<-s.stopped
}
