package caddymodule

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/disk"
)

// This file says where spools are and what they hold: when one is opened, when it
// goes out of the configuration, and when a gateway starts without it.

// tellOpened says where a spool is, and what it holds.
func tellOpened(place string, encrypted bool, log spool.Log) {
	records, dead := 0, 0
	queues := map[string]int{}
	for _, name := range log.Queues() {
		depth, _ := log.Depth(name) // what is known
		records, dead = records+depth.Records, dead+depth.Dead
		queues[name] = depth.Records
	}
	used, limit := log.Size()
	caddy.Log().Named(handlerID).Info("the spool is open",
		zap.String("spool", place), zap.Bool("encrypted", encrypted), zap.Int("records", records), zap.Int("dead_letters", dead),
		zap.Any("queues", queues), zap.Int64("bytes", used), zap.Int64("max_size", limit))
}

// leftAdvice is what an operator can do about a spool that nobody opens.
const leftAdvice = "they are not delivered: configure this spool again until td-spool status shows none, or delete it"

// strandedAdvice is what an operator can do about records for a host that no
// configuration knows: a legacy host, when migrate is gone.
const strandedAdvice = "they are not delivered, and what was kept for the legacy host goes nowhere else: configure migrate again, with this legacy host, until td-spool status shows none, or delete the queue's directory"

// tellLeft warns of a spool that goes out of the configuration with records in it.
func (s *sharedSpool) tellLeft() {
	log := s.Log()
	if log == nil || caddy.Exiting() {
		return
	}
	records, dead := 0, 0
	for _, name := range log.Queues() {
		depth, _ := log.Depth(name)
		records, dead = records+depth.Records, dead+depth.Dead
	}
	warnOfLeft(s.Place(), records, dead)
}

func warnOfLeft(place string, records, dead int) {
	if records+dead > 0 {
		caddy.Log().Named(handlerID).Warn("a spool that is in no configuration holds records",
			zap.String("spool", place), zap.Int("records", records), zap.Int("dead_letters", dead), zap.String("advice", leftAdvice))
	}
}

// spoolDirs is where the directories are noted that were spools, so that a gateway
// which starts without one of them can look into it. The mutex is for the file.
var (
	spoolDirsMu sync.Mutex
	spoolDirs   = func() string { return filepath.Join(caddy.AppDataDir(), "td_postback", "spool-dirs") }
)

func defaultSpoolDir() string { return filepath.Join(caddy.AppDataDir(), "td_postback", "spool") }

// noteSpoolDirs notes the directories that are spools now, and warns of others that
// hold records. A note that cannot be written changes nothing else.
func noteSpoolDirs(used []string) {
	spoolDirsMu.Lock()
	defer spoolDirsMu.Unlock()
	noted := readLines(spoolDirs())
	keep := slices.Clone(used)
	for _, dir := range append(noted, defaultSpoolDir()) {
		if slices.Contains(keep, dir) {
			continue
		}
		records, dead, err := disk.Look(dir)
		switch {
		case errors.Is(err, disk.ErrLocked): // it is open, in this process or another
			keep = append(keep, dir)
		case records+dead > 0:
			warnOfLeft(dir, records, dead)
			keep = append(keep, dir)
		}
	}
	slices.Sort(keep)
	if keep = slices.Compact(keep); slices.Equal(keep, noted) {
		return
	}
	if err := os.MkdirAll(filepath.Dir(spoolDirs()), 0o700); err == nil {
		_ = os.WriteFile(spoolDirs(), []byte(strings.Join(keep, "\n")+"\n"), 0o600)
	}
}

// readLines reads the lines of a file, which need not be there.
func readLines(path string) (lines []string) {
	f, err := os.Open(path) //nolint:gosec // G304: the module's own
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // it is only read
	for s := bufio.NewScanner(f); s.Scan(); {
		if s.Text() != "" {
			lines = append(lines, s.Text())
		}
	}
	return lines
}
