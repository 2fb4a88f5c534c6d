package postback

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxWords is how much is told of what v2 says about a record, in bytes.
	MaxWords = 200

	// wordsRoom is how much of an answer is looked at for that.
	wordsRoom = 2 << 10

	// leastKnown is how many characters of a key's secret give it away.
	leastKnown = 6
)

// Words makes something that an operator may read of what v2 says when it
// refuses a record: one line of at most MaxWords bytes, without write keys. keys
// are those of the request; v2 may quote them, whatever they look like. text is
// the answer's body, or how it begins. Then its last word goes, which may be a
// part of a key.
func Words(text []byte, whole bool, keys ...string) string {
	if len(text) > wordsRoom {
		text, whole = text[:wordsRoom], false
	}
	if !whole {
		text = text[:1+bytes.LastIndexAny(text, " \t\r\n\"'<>,")]
	}
	said := oneLine(string(text))
	for _, key := range keys {
		said = maskThis(said, key)
	}
	said = MaskKeys(said)
	for len(said) > MaxWords {
		_, width := utf8.DecodeLastRuneInString(said)
		said = said[:len(said)-width]
	}
	return said
}

// oneLine writes a text on one line. What cannot be seen becomes a space.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return ' '
		}
		return r // U+FFFD for what is not UTF-8
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// maskThis returns a text with `…` in place of a key's secret, and of how it
// begins, in any case and with escapes of a URL's or of JSON's. A key without a
// secret is one itself.
func maskThis(s, key string) string {
	if _, secret, ok := strings.Cut(key, "/"); ok && len(secret) >= leastKnown {
		key = secret
	}
	if key == "" {
		return s
	}
	least := min(len(key), leastKnown)
	var out strings.Builder
	for i := 0; i < len(s); {
		end, matched := i, 0
		for matched < len(key) {
			width := sameAt(s, end, key[matched])
			if width == 0 {
				break
			}
			end, matched = end+width, matched+1
		}
		if matched < least {
			out.WriteByte(s[i])
			i++
			continue
		}
		out.WriteString(masked)
		i = end
	}
	return out.String()
}

// sameAt returns how many bytes of s[i] on are this character, in any case, as
// itself or escaped; 0 if none.
func sameAt(s string, i int, want byte) int {
	if i < len(s) && lower(s[i]) == lower(want) {
		return 1
	}
	if c, width := charAt(s, i); lower(c) == lower(want) {
		return width
	}
	return 0
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
