package console

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// number writes a whole number with commas.
func number[T ~int | ~int64 | ~uint64](n T) string {
	digits, sign := strconv.FormatInt(int64(n), 10), ""
	if n < 0 {
		digits, sign = digits[1:], "-"
	}
	var parts []string
	for len(digits) > 3 {
		parts = append([]string{digits[len(digits)-3:]}, parts...)
		digits = digits[:len(digits)-3]
	}
	return sign + strings.Join(append([]string{digits}, parts...), ",")
}

// rate writes how many there are a second.
func rate(perSecond float64) string {
	switch {
	case perSecond <= 0:
		return "0"
	case perSecond < 0.1:
		return "under 0.1"
	case perSecond < 10:
		return strings.TrimSuffix(strconv.FormatFloat(perSecond, 'f', 1, 64), ".0")
	default:
		return number(int64(math.Round(perSecond)))
	}
}

// size writes a number of bytes.
func size(bytes int64) string {
	const unit = 1024
	if bytes < unit {
		return number(bytes) + " B"
	}
	value, names := float64(bytes), []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	for i, name := range names {
		if value /= unit; value < unit || i == len(names)-1 {
			return strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0") + " " + name
		}
	}
	return ""
}

// span writes a duration with one unit, or two.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return "under a second"
	case d < time.Minute:
		return count(int64(d/time.Second), "second")
	case d < time.Hour:
		return count(int64(d/time.Minute), "minute")
	case d < 24*time.Hour:
		return pair(d, time.Hour, "hour", time.Minute, "min")
	default:
		return pair(d, 24*time.Hour, "day", time.Hour, "h")
	}
}

func pair(d, large time.Duration, name string, small time.Duration, short string) string {
	text := count(int64(d/large), name)
	if rest := d % large / small; rest > 0 && d < 10*large {
		text += fmt.Sprintf(" %d %s", rest, short)
	}
	return text
}

// count writes a number and what it is of.
func count[T ~int | ~int64 | ~uint64](n T, name string) string {
	if n == 1 {
		return "1 " + name
	}
	return number(n) + " " + name + "s"
}

// took writes how long an answer took.
func took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return "under 1 ms"
	case d < 10*time.Millisecond:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds()*1000, 'f', 1, 64), ".0") + " ms"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	default:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds(), 'f', 1, 64), ".0") + " s"
	}
}

// sentence writes an error as a sentence.
func sentence(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	if size == 0 {
		return text
	}
	text = string(unicode.ToUpper(first)) + text[size:]
	if !strings.ContainsAny(text[len(text)-1:], ".!?") {
		text += "."
	}
	return text
}

// moment writes a time so that it can be found in a log.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
