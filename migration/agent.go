package migration

import (
	"hash/maphash"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/td-postback/gateway/postback"
)

// This file reads a User-Agent: the product's name without its version, so that one
// row stands for all versions of a client. It allocates nothing: a name is a part of
// the header, or a constant.

// maxAgentRead is how much of a User-Agent is read, in bytes: real ones have at most
// a few hundred.
const maxAgentRead = 512

// maxKnownAgents is how many User-Agents are remembered. Each takes about 100 bytes.
const maxKnownAgents = 2048

// knownAgents remembers what User-Agents say: nearly all calls come with one of a few
// hundred, and to read it takes longer than all else that is counted of a call.
type knownAgents struct {
	mu    sync.RWMutex
	known map[uint64]agent // by a hash
}

// agent is what a User-Agent says.
type agent struct {
	family  string // fit for a report
	browser bool
}

var agentSeed = maphash.MakeSeed()

// of is what a User-Agent says.
func (a *knownAgents) of(userAgent string) agent {
	userAgent = readableAgent(userAgent)
	sum := maphash.String(agentSeed, userAgent)
	a.mu.RLock()
	of, known := a.known[sum]
	a.mu.RUnlock()
	if known {
		return of
	}
	family, browser := agentFamily(userAgent)
	of = agent{string(appendFamily(nil, family)), browser}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil || len(a.known) >= maxKnownAgents {
		a.known = make(map[uint64]agent)
	}
	a.known[sum] = of
	return of
}

// readableAgent is the part of a User-Agent that is read.
func readableAgent(userAgent string) string {
	userAgent = strings.TrimLeft(userAgent, " ")
	return userAgent[:min(len(userAgent), maxAgentRead)]
}

// agentFamily is the name of the product that a User-Agent stands for, and whether
// that is a browser: a program that says of itself which page it is on. It is empty
// if there is none. A space in it may still be %20.
func agentFamily(userAgent string) (family string, browser bool) {
	userAgent = readableAgent(userAgent)
	if rest, ok := strings.CutPrefix(userAgent, "Mozilla/"); ok {
		return mozillaFamily(rest)
	}
	family = productName(userAgent)
	return family, family == "Opera"
}

// appendFamily appends such a name, with its spaces.
func appendFamily(dst []byte, family string) []byte {
	start := len(dst)
	dst = appendClean(dst, family, maxAgent)
	for i := start; i+len(escapedSpace) <= len(dst); i++ {
		if string(dst[i:i+len(escapedSpace)]) == escapedSpace {
			dst[i] = ' '
			dst = append(dst[:i+1], dst[i+len(escapedSpace):]...)
		}
	}
	return dst
}

const escapedSpace = "%20" // as iOS writes it

// mozillaFamily reads a User-Agent that begins as all browsers' do. Most of them name
// several products, and the rarest of these is the one: Edge says Chrome and Safari
// too, and Chrome says Safari.
func mozillaFamily(rest string) (family string, browser bool) {
	best := plainMozilla
	for at := 0; at < len(rest); {
		end := at
		var name string
		var of rank
		switch rest[at] {
		case ' ':
			at++
			continue
		case '(':
			if end = strings.IndexByte(rest[at:], ')'); end < 0 {
				end = len(rest) - at
			}
			end += at
			name, of = commentProduct(rest[at+1 : end])
		default:
			for end < len(rest) && rest[end] != ' ' && rest[end] != '(' {
				end++
			}
			name, of = browserProduct(rest[at:end])
		}
		if of > best {
			family, best = name, of
		}
		at = max(end, at+1)
	}
	if best == plainMozilla {
		return "Mozilla", true
	}
	return family, best != robot
}

// rank is how much a product's name tells: the highest of a User-Agent is the one.
type rank uint8

const (
	plainMozilla rank = iota
	engine            // Safari, which nearly all name
	base              // what others are made from
	brand             // what is made from it
	robot
)

// browserProduct is what a product in a browser's User-Agent says.
func browserProduct(product string) (family string, of rank) {
	name, _, _ := strings.Cut(product, "/")
	switch name {
	case "Safari":
		return "Safari", engine
	case "Chrome", "Chromium", "CriOS":
		return "Chrome", base
	case "Firefox", "FxiOS":
		return "Firefox", base
	case "Edg", "Edge", "EdgA", "EdgiOS":
		return "Edge", brand
	case "OPR", "OPT", "OPiOS", "Opera":
		return "Opera", brand
	case "SamsungBrowser":
		return "Samsung Internet", brand
	case "YaBrowser":
		return "Yandex Browser", brand
	case "UCBrowser", "Vivaldi", "Brave", "DuckDuckGo", "Whale", "MiuiBrowser", "HuaweiBrowser", "Silk", "QQBrowser", "MicroMessenger",
		"Electron", "Instagram", "Line", "GSA", "HeadlessChrome", "PhantomJS", "Snapchat", "Pinterest", "Slack":
		return name, brand
	}
	if strings.HasPrefix(name, "[FB") {
		return "Facebook", brand
	}
	return "", plainMozilla
}

// commentProduct is what a comment of a browser's User-Agent says: that it is old, in
// an app, or no browser.
func commentProduct(comment string) (family string, of rank) {
	if _, product, ok := strings.Cut(comment, "compatible; "); ok {
		if strings.HasPrefix(product, "MSIE") {
			return "Internet Explorer", engine
		}
		if name := productName(product); name != "" {
			return name, robot
		}
	}
	switch {
	case strings.Contains(comment, "Trident/"):
		return "Internet Explorer", engine
	case strings.HasSuffix(comment, "; wv"):
		return "Android WebView", base // and first, before Chrome
	}
	return "", plainMozilla
}

// productName is the name with which any other User-Agent begins: words up to a
// version, a comment, or what no name has.
func productName(userAgent string) string {
	end := 0
	for at := 0; at < len(userAgent) && at < maxAgent; {
		stop := at
		for stop < len(userAgent) && isNameByte(userAgent[stop]) {
			stop++
		}
		word := userAgent[at:stop]
		if word == "" || isDigit(word[0]) || isVersion(word) || postback.MayBeSecret(word) || beginsKey(word) || isAddress(userAgent[stop:]) {
			break
		}
		end = at + len(withoutVersion(word))
		if end < stop {
			break
		}
		switch rest := userAgent[stop:]; {
		case strings.HasPrefix(rest, " "):
			at = stop + 1
		case strings.HasPrefix(rest, escapedSpace):
			at = stop + len(escapedSpace)
		default:
			at = len(userAgent)
		}
	}
	return userAgent[:end]
}

// isVersion reports whether a word is a version with a letter before it: v2.1.
func isVersion(word string) bool {
	return len(word) > 1 && word[0]|0x20 == 'v' && isDigit(word[1])
}

// beginsKey reports whether a key follows a word: TD1.
func beginsKey(word string) bool {
	return len(word) >= 3 && strings.EqualFold(word[len(word)-3:], "TD1")
}

// isAddress reports whether a word before this was the beginning of an e-mail address.
func isAddress(rest string) bool {
	return strings.HasPrefix(rest, "@") || strings.HasPrefix(rest, "%40")
}

// withoutVersion takes a version off a word's end, if it has one with dots:
// Java1.8.0_201 is Java, and okhttp3 is itself.
func withoutVersion(word string) string {
	end, dots := len(word), false
	for end > 0 && (isDigit(word[end-1]) || word[end-1] == '.' || word[end-1] == '_') {
		dots = dots || word[end-1] == '.'
		end--
	}
	if !dots {
		return word
	}
	return strings.TrimRight(word[:end], "-")
}

// isNameByte reports whether a product's name may have a byte. A byte of a character
// beyond ASCII may be there.
func isNameByte(c byte) bool {
	switch c {
	case '-', '_', '.', '+', '&', '!':
		return true
	}
	return isLetter(c) || isDigit(c) || c >= utf8.RuneSelf
}
