package postback

import "strings"

// This file keeps write keys out of what people read: logs, pages, errors. It
// goes by shape and by name, for a key can stand in any header, path or answer,
// in JSON, or in a URL inside of a URL.

// masked stands where a key was.
const masked = "…"

// minSecret is how many hexadecimal digits behind a number and a slash make a
// key. Real keys have 40; names and dates in paths have fewer than 16.
const minSecret = 16

// MaskKeys returns a text with `…` in place of each write key, and the text
// itself if it has none. A key is
//
//   - what stands behind an account number and `/`, if it begins with at least
//     16 hexadecimal digits: `1234/…`;
//   - what stands behind `TD1 `;
//   - what stands behind the names td_write_key, X-TD-Write-Key, api_key and
//     their like (writeKey, x-api-key) with `=` or `:`.
//
// Names compare without case. Each character may be escaped as in a URL, up to
// three times, or as in JSON. When in doubt, more is masked. The time is linear
// in the text's length, whatever it holds.
func MaskKeys(s string) string {
	var out strings.Builder
	done := 0 // what is before it is in out
	for i := 0; i < len(s); {
		if !mayBegin[s[i]] {
			i++
			continue
		}
		from, to := secretAt(s, i)
		if from < to && s[from:to] != masked {
			out.WriteString(s[done:from])
			out.WriteString(masked)
			done = to
		}
		i = max(i+1, to)
	}
	if done == 0 {
		return s
	}
	out.WriteString(s[done:])
	return out.String()
}

// Shown is a destination for what people read. A caller that puts its key into the path
// has an account number for a database and the secret for a table, or no database that is
// a name, or all of the secret in one of them. `…` stands in place of such a name.
func (d Destination) Shown() Destination {
	if len(d.Database) < usualSecret && len(d.Table) < minSecret {
		return d
	}
	isKey := d.Database != "" && isDigit(d.Database[len(d.Database)-1]) && len(d.Table) >= minSecret && hasOnly(d.Table[:minSecret], isHex)
	if isKey || d.Database == "" && MayBeSecret(d.Table) || hexRun(d.Table) >= usualSecret {
		d.Table = masked
	}
	if hexRun(d.Database) >= usualSecret {
		d.Database = masked
	}
	return d
}

// MayBeSecret reports whether a text has as many hexadecimal digits in a row as the secret
// of a key has at least.
func MayBeSecret(text string) bool { return hexRun(text) >= minSecret }

// hexRun is how many hexadecimal digits a text has in a row.
func hexRun(text string) (longest int) {
	run := 0
	for i := range len(text) {
		if run++; !isHex(text[i]) {
			run = 0
		}
		longest = max(longest, run)
	}
	return longest
}

// mayBegin has the bytes with which what secretAt finds may begin. Most bytes of
// a text are none of them.
var mayBegin = func() (begins [256]bool) {
	for _, c := range []byte(`0123456789TtWwAa%\`) {
		begins[c] = true
	}
	return begins
}()

// secretAt finds the secret of a key that begins at s[i], with its account
// number or its name. Without one it is empty, and no key begins before it.
func secretAt(s string, i int) (from, to int) {
	switch c, _ := charAt(s, i); {
	case isDigit(c):
		return shapedAt(s, i)
	case c == 't' || c == 'T':
		return schemedAt(s, i)
	case c == 'w' || c == 'W':
		return namedAt(s, i, "write")
	case c == 'a' || c == 'A':
		return namedAt(s, i, "api")
	}
	return i, i
}

// shapedAt finds the secret behind an account number. A run of digits is read
// once: what is no key from its first digit on is none from a later one.
func shapedAt(s string, i int) (from, to int) {
	digits := runOf(s, i, isDigit, len(s))
	c, width := charAt(s, digits)
	if c != '/' {
		return digits, digits
	}
	from = digits + width
	if short := runOf(s, from, isHex, minSecret-1); runOf(s, short, isHex, 1) == short {
		return digits, digits
	}
	return from, runOf(s, from, isWord, len(s))
}

// schemedAt finds the key behind the scheme TD1. What stands before the scheme
// does not matter: it may be the `n` of an escaped line break.
func schemedAt(s string, i int) (from, to int) {
	end := behind(s, i, "td1")
	if end < 0 || runOf(s, end, isBlank, 1) == end {
		return i, i
	}
	return value(s, end, "")
}

// namedAt finds the value behind a name that ends in word and key.
func namedAt(s string, i int, word string) (from, to int) {
	end := behind(s, i, word)
	if end < 0 {
		return i, i
	}
	if end = behind(s, runOf(s, end, isJoint, 1), "key"); end < 0 {
		return i, i
	}
	end = runOf(s, end, isWrapping, len(s))
	switch c, width := charAt(s, end); c {
	case '=':
		return value(s, end+width, "&")
	case ':':
		return value(s, end+width, "")
	}
	return i, i
}

// value finds a value without the quotes and brackets around it. It ends at
// white space, a quote or one of ends.
func value(s string, i int, ends string) (from, to int) {
	from = runOf(s, i, isWrapping, len(s))
	to = len(s)
	if n := strings.IndexAny(s[from:], " \t\r\n\"'"+ends); n >= 0 {
		to = from + n
	}
	// A backslash there belongs to the quote, a comma to the sentence.
	return from, from + len(strings.TrimRight(s[from:to], `\,`))
}

// behind returns the end of a word in small letters and digits that begins at
// s[i] in any case, or -1.
func behind(s string, i int, word string) int {
	for k := range len(word) {
		c, width := charAt(s, i)
		if width == 0 || lower(c) != word[k] {
			return -1
		}
		i += width
	}
	return i
}

// runOf returns the end of a run of characters of a class that begins at s[i].
// It has most of them at most.
func runOf(s string, i int, class func(byte) bool, most int) int {
	for range most {
		c, width := charAt(s, i)
		if width == 0 || !class(c) {
			break
		}
		i += width
	}
	return i
}

// charAt reads the character at s[i] and how many bytes it takes: itself, a
// percent-escape, which may be percent-escaped twice more, or an escape of
// JSON's. At the end of s the width is 0.
func charAt(s string, i int) (c byte, width int) {
	if i >= len(s) {
		return 0, 0
	}
	switch end := i + 1; s[i] {
	case '%':
		for range 2 {
			if strings.HasPrefix(s[end:], "25") {
				end += 2
			}
		}
		if c, ok := hexPair(s, end); ok {
			return c, end + 2 - i
		}
	case '\\':
		if strings.HasPrefix(s[end:], "/") || strings.HasPrefix(s[end:], `"`) {
			return s[end], 2
		}
		if c, ok := hexPair(s, end+3); ok && strings.HasPrefix(s[end:], "u00") {
			return c, 6
		}
	}
	return s[i], 1
}

// hexPair reads the byte that two hexadecimal digits say.
func hexPair(s string, i int) (c byte, ok bool) {
	if i+2 > len(s) || !isHex(s[i]) || !isHex(s[i+1]) {
		return 0, false
	}
	return unhex(s[i])<<4 | unhex(s[i+1]), true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isWord reports whether a byte may go on a key that has been recognised.
func isWord(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == '-'
}

// isJoint reports whether a byte joins the words of a name.
func isJoint(c byte) bool { return c == '_' || c == '-' || c == '.' }

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '+' }

// isWrapping reports whether a byte may stand between a name, its sign and its
// value.
func isWrapping(c byte) bool {
	switch c {
	case '"', '\'', '[', ']', '(', '>':
		return true
	}
	return isBlank(c)
}
