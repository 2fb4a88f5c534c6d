package migration

import (
	"unicode"
	"unicode/utf8"
)

// This file makes what callers choose fit for a report: short, printable, valid
// UTF-8, and no key.

// The most bytes of a row's fields. What is longer is cut, and ends with cutMark.
const (
	maxFingerprint = 40
	maxName        = 96 // of a database or table
	maxSurface     = 16
	maxAgent       = 40
	maxSource      = 64
	maxResult      = 32

	cutMark = "…"
)

// appendClean appends a text of at most so many bytes, with U+FFFD in place of what
// cannot be printed.
func appendClean(dst []byte, text string, limit int) []byte {
	if len(text) <= limit && isPlain(text) {
		return append(dst, text...)
	}
	end := len(dst) + limit - len(cutMark)
	for _, r := range text {
		if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		if len(dst)+utf8.RuneLen(r) > end {
			return append(dst, cutMark...)
		}
		dst = utf8.AppendRune(dst, r)
	}
	return dst
}

// isPlain reports whether a text is printable ASCII.
func isPlain(text string) bool {
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// clean is appendClean of a text of its own.
func clean(text string, limit int) string {
	if len(text) <= limit && isPlain(text) {
		return text
	}
	return string(appendClean(nil, text, limit))
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
