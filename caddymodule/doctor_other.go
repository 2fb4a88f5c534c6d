//go:build !linux

package caddymodule

// What the doctor cannot ask this system: it says nothing about it.

func mayWrite(string) bool { return true }

func freeSpace(string) (int64, bool) { return 0, false }

func fileLimit() (uint64, bool) { return 0, false }
