package postback

import (
	"encoding/binary"
	"encoding/json"
	"math/bits"
)

// maxDepth is how deep validValue calls itself. What is deeper is no usual record, and
// encoding/json's: a few bytes of brackets must not take a large stack, which no limit
// counts and which stays a while.
const maxDepth = 64

// tooDeep is where a value ends that is deeper.
const tooDeep = -1

// validJSON reports whether a text is one JSON value (RFC 8259). It says what
// json.Valid says, in a quarter of the time: a record that is kept, and goes in a
// batch, is looked at twice.
func validJSON(text []byte) bool {
	at, ok := validValue(text, skipSpace(text, 0), 0)
	if at == tooDeep {
		return json.Valid(text)
	}
	return ok && skipSpace(text, at) == len(text)
}

func skipSpace(text []byte, at int) int {
	for at < len(text) && isJSONSpace(text[at]) {
		at++
	}
	return at
}

// validValue reads the value that begins at a place, and returns where it ends.
func validValue(text []byte, at, depth int) (end int, ok bool) {
	if at >= len(text) {
		return at, false
	}
	switch c := text[at]; c {
	case '"':
		return validString(text, at+1)
	case '{', '[':
		if depth == maxDepth {
			return tooDeep, false
		}
		return validMembers(text, at, depth+1)
	case 't':
		return validWord(text, at, "true")
	case 'f':
		return validWord(text, at, "false")
	case 'n':
		return validWord(text, at, "null")
	}
	return validNumber(text, at)
}

// validMembers reads an object or an array.
func validMembers(text []byte, at, depth int) (end int, ok bool) {
	object, closing := text[at] == '{', text[at]+2 // in ASCII
	if at = skipSpace(text, at+1); at < len(text) && text[at] == closing {
		return at + 1, true
	}
	for {
		if object {
			if at >= len(text) || text[at] != '"' {
				return at, false
			}
			if at, ok = validString(text, at+1); !ok {
				return at, false
			}
			if at = skipSpace(text, at); at >= len(text) || text[at] != ':' {
				return at, false
			}
			at = skipSpace(text, at+1)
		}
		if at, ok = validValue(text, at, depth); !ok {
			return at, false
		}
		if at = skipSpace(text, at); at >= len(text) {
			return at, false
		}
		switch text[at] {
		case closing:
			return at + 1, true
		case ',':
			at = skipSpace(text, at+1)
		default:
			return at, false
		}
	}
}

// validString reads what is behind the quote that begins a string.
func validString(text []byte, at int) (end int, ok bool) {
	for ; at < len(text); at++ {
		if at+8 <= len(text) {
			special := specialBytes(binary.LittleEndian.Uint64(text[at:]))
			if special == 0 {
				at += 7
				continue
			}
			at += bits.TrailingZeros64(special) / 8
		}
		switch c := text[at]; {
		case c == '"':
			return at + 1, true
		case c < ' ':
			return at, false
		case c == '\\':
			if at++; at >= len(text) {
				return at, false
			}
			switch text[at] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if at+4 >= len(text) || !isHex(text[at+1]) || !isHex(text[at+2]) || !isHex(text[at+3]) || !isHex(text[at+4]) {
					return at, false
				}
				at += 4
			default:
				return at, false
			}
		}
	}
	return at, false
}

// specialBytes has the highest bit of the first of eight bytes that does not stand for
// itself in a string, and maybe of later ones; 0 if there is none. Most of a record is
// text, and byte by byte that would take several times as long.
func specialBytes(eight uint64) uint64 {
	const each, highest = 0x0101010101010101, 0x8080808080808080
	quote, escape := eight^each*'"', eight^each*'\\'
	return ((eight-each*' ')&^eight | (quote-each)&^quote | (escape-each)&^escape) & highest
}

func validWord(text []byte, at int, word string) (end int, ok bool) {
	end = at + len(word)
	return end, end <= len(text) && string(text[at:end]) == word
}

func validNumber(text []byte, at int) (end int, ok bool) {
	if at < len(text) && text[at] == '-' {
		at++
	}
	whole := at
	if at = skipDigits(text, at); at == whole || text[whole] == '0' && at > whole+1 {
		return at, false
	}
	if at < len(text) && text[at] == '.' {
		fraction := at + 1
		if at = skipDigits(text, fraction); at == fraction {
			return at, false
		}
	}
	if at < len(text) && text[at]|0x20 == 'e' {
		if at++; at < len(text) && (text[at] == '+' || text[at] == '-') {
			at++
		}
		exponent := at
		if at = skipDigits(text, at); at == exponent {
			return at, false
		}
	}
	return at, true
}

func skipDigits(text []byte, at int) int {
	for at < len(text) && isDigit(text[at]) {
		at++
	}
	return at
}
