package postback

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
)

// This file has an operator's rules: which keys may send, and where records may go.
// v2 answers 200 to any key, so that nobody else says what is right.

// Names is a set of names of databases or tables. The zero value is empty.
type Names struct {
	whole    map[string]struct{}
	prefixes []string
}

// NamesOf is the set of these names. One that ends in `*` stands for all names that
// begin so.
func NamesOf(patterns []string) (n Names) {
	for _, pattern := range patterns {
		if prefix, wide := strings.CutSuffix(pattern, "*"); wide {
			n.prefixes = append(n.prefixes, prefix)
			continue
		}
		if n.whole == nil {
			n.whole = make(map[string]struct{}, len(patterns))
		}
		n.whole[pattern] = struct{}{}
	}
	return n
}

// ValidNamePattern reports whether NamesOf takes a pattern: a name, or the beginning of
// one and `*`, or `*` alone.
func ValidNamePattern(pattern string) bool {
	prefix, wide := strings.CutSuffix(pattern, "*")
	return validName(prefix) || wide && prefix == ""
}

// Has reports whether a name is in the set. An empty one never is.
func (n *Names) Has(name string) bool {
	if _, whole := n.whole[name]; whole {
		return true
	}
	for _, prefix := range n.prefixes {
		if name != "" && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// maxAccount is the longest account number, in digits. What is longer is none.
const maxAccount = 20

// ValidAccount reports whether a text is an account number.
func ValidAccount(text string) bool {
	return text != "" && len(text) <= maxAccount && hasOnly(text, isDigit)
}

// AccountNumber is the account number of the key that v2 uses, or empty if there is
// no key, or it has none.
func (c *Credentials) AccountNumber() string { return AccountOf(c.Key()) }

// AccountOf is the account number of a key, or empty if it has none.
func AccountOf(key string) string {
	if account := accountOf(key); ValidAccount(account) {
		return account
	}
	return ""
}

// Policy is an operator's rules. The zero value knows every key and every database.
type Policy struct {
	accounts      map[string]struct{}
	databases     Names
	anyDatabase   bool
	keysAreListed bool
}

// NewPolicy makes the rules: the keys of these accounts are known, and with listed
// those of a KeyList besides; and so are these databases. Without any of a kind, all
// of that kind are.
func NewPolicy(accounts, databases []string, listed bool) *Policy {
	p := &Policy{databases: NamesOf(databases), anyDatabase: len(databases) == 0, keysAreListed: listed}
	if len(accounts) > 0 {
		p.accounts = make(map[string]struct{}, len(accounts))
	}
	for _, account := range accounts {
		p.accounts[account] = struct{}{}
	}
	return p
}

// KnowsKey reports whether a key may send. It must be the one that v2 would use. list
// is looked into if the keys are listed.
func (p *Policy) KnowsKey(key string, list *KeyList) bool {
	if p.accounts != nil {
		if _, known := p.accounts[accountOf(key)]; known {
			return true
		}
	}
	if p.keysAreListed {
		return list.Has(key)
	}
	return p.accounts == nil
}

// KnowsDatabase reports whether records may go to a database.
func (p *Policy) KnowsDatabase(name string) bool {
	return p.anyDatabase || p.databases.Has(name)
}

// KeyList is a list of keys. It holds their SHA-256 only, so no key.
type KeyList struct {
	hashes map[[sha256.Size]byte]struct{}
}

// Len is how many keys there are.
func (l *KeyList) Len() int { return len(l.hashes) }

// Has reports whether a key is in the list.
func (l *KeyList) Has(key string) bool {
	// Enough for every key that there is, and on the stack.
	var room [64]byte
	_, has := l.hashes[sha256.Sum256(append(room[:0], key...))]
	return has
}

// Equal reports whether two lists have the same keys.
func (l *KeyList) Equal(other *KeyList) bool {
	return maps.Equal(l.hashes, other.hashes)
}

// With is a list that has the keys of both.
func (l *KeyList) With(other *KeyList) *KeyList {
	both := &KeyList{hashes: make(map[[sha256.Size]byte]struct{}, max(l.Len(), other.Len()))}
	maps.Copy(both.hashes, l.hashes)
	maps.Copy(both.hashes, other.hashes)
	return both
}

// usualKeyLine is the length of a line with a key of Treasure Data's, in bytes: at least
// an account number, a slash, 40 digits and a line break.
const usualKeyLine = 43

// hashPrefix stands before the SHA-256 of a key.
const hashPrefix = "sha256:"

// ReadKeyList reads a list of keys: one a line, as it is or as the hexadecimal SHA-256
// of its bytes behind `sha256:`. A label may follow, behind white space. Blank lines,
// and lines that begin with `#`, are nothing. An error names the line, and never its
// text.
func ReadKeyList(text []byte) (*KeyList, error) {
	text = bytes.TrimPrefix(text, []byte(byteOrderMark))
	// No more room than a file of real keys needs: a damaged one may be line breaks alone.
	lines := min(bytes.Count(text, []byte("\n"))+1, len(text)/usualKeyLine)
	list := &KeyList{hashes: make(map[[sha256.Size]byte]struct{}, lines)}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		hash, problem := keyHash(line)
		if problem != "" {
			return nil, fmt.Errorf("line %d: %s", number, problem)
		}
		list.hashes[hash] = struct{}{}
	}
	if list.Len() == 0 {
		return nil, errors.New("there is no key in it: write one a line")
	}
	return list, nil
}

// keyHash reads a line with a key, or says what is wrong with it.
func keyHash(line []byte) (hash [sha256.Size]byte, problem string) {
	end := bytes.IndexAny(line, " \t")
	if end < 0 {
		end = len(line)
	}
	word, label := string(line[:end]), string(line[end:])
	if MaskKeys(label) != label {
		return hash, "has a second key; write one a line"
	}
	if digits, hashed := strings.CutPrefix(word, hashPrefix); hashed {
		sum, err := hex.DecodeString(digits)
		if err != nil || len(sum) != len(hash) {
			return hash, "must have 64 hexadecimal digits behind sha256:"
		}
		copy(hash[:], sum)
		return hash, ""
	}
	if AccountOf(word) == "" || keyProblem(word) != "" || strings.Contains(word, "#") {
		return hash, "must be a write key, such as 1234/ and hexadecimal digits, or sha256: and 64 hexadecimal digits; a label may follow behind a space"
	}
	return sha256.Sum256([]byte(word)), ""
}
