package postback

import "strings"

// KeyForm is what a write key looks like. v2 answers 200 to a wrong one, so its form is
// all that can be told at once.
type KeyForm uint8

// The forms of write keys.
const (
	KeyUsual    KeyForm = iota // as Treasure Data makes them: an account number, a slash and 40 hexadecimal digits
	KeyCut                     // such a one of which a part is missing, or hidden
	KeyTemplate                // what stands in a template, or what a program writes that has no key
	KeyUnusual                 // something else
)

// KeyFormNames has the forms' names in metrics and logs.
var KeyFormNames = [...]string{"usual", "cut", "template", "unusual"}

// String is the form's name in metrics and logs.
func (f KeyForm) String() string { return KeyFormNames[f] }

const (
	// usualSecret is how many hexadecimal digits a key has behind its slash. Nothing is
	// said of one that has more.
	usualSecret = 40

	// leastSecret is how many hexadecimal digits are taken for a key without an account.
	leastSecret = 16
)

// KeyFormOf is the form of a write key. It allocates nothing.
func KeyFormOf(key string) KeyForm {
	account, secret, hasSlash := strings.Cut(key, "/")
	isAccount, isSecret := account != "" && hasOnly(account, isDigit), hasOnly(secret, isHex)
	switch {
	case isAccount && isSecret && len(secret) >= usualSecret:
		return KeyUsual
	case isAccount && isSecret: // maybe without a secret, or a slash
		return KeyCut
	case account == "" && secret != "" && isSecret, !hasSlash && len(key) >= leastSecret && hasOnly(key, isHex):
		return KeyCut
	case strings.Contains(key, "...") || strings.Contains(key, "***"): // copied from where it is not shown
		return KeyCut
	case isTemplate(key) || isTemplate(account) || isTemplate(secret):
		return KeyTemplate
	default:
		return KeyUnusual
	}
}

// templateWords are what programs write that have no key, and what stands where one
// belongs. Case does not count.
var templateWords = [...]string{
	"undefined", "null", "nil", "none", "nan", "true", "false", "key", "apikey", "api_key", "writekey", "write_key", "td_write_key", "td_api_key",
	"%s", "%d", "%v", "%@", "todo", "secret",
}

// templateParts are what only such a word has in it, and no key.
var templateParts = [...]string{"your", "xxxx", "changeme", "change_me", "placeholder", "example", "insert_", "replace"}

// isTemplate reports whether a key, or a part of one, is what stands in a template:
// YOUR_KEY, {{KEY}}, ${KEY}, %KEY%, <key>, [KEY], *|KEY|*, __KEY__, undefined.
func isTemplate(key string) bool {
	for _, word := range templateWords {
		if strings.EqualFold(key, word) {
			return true
		}
	}
	if strings.ContainsAny(key, "{}<>[]()$|") || isBetween(key, "%") || isBetween(key, "__") || isBetween(key, "@") {
		return true
	}
	for _, part := range templateParts {
		if containsFold(key, part) {
			return true
		}
	}
	return false
}

// isBetween reports whether a text begins and ends with a mark, and has more.
func isBetween(text, mark string) bool {
	return len(text) > 2*len(mark) && strings.HasPrefix(text, mark) && strings.HasSuffix(text, mark)
}

// containsFold reports whether a text has a part in it. Case does not count.
func containsFold(text, part string) bool {
	for i := 0; i+len(part) <= len(text); i++ {
		if strings.EqualFold(text[i:i+len(part)], part) {
			return true
		}
	}
	return false
}
