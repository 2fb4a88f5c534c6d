package migration

import (
	"strings"

	"github.com/td-postback/gateway/postback"
)

// usualSecret is how many hexadecimal digits a write key has behind its account.
const usualSecret = 40

// KeyFindings is what is worth a note about a write key, by its form alone: that a part
// of it is missing, that it is a template's word, or that it is something else. Of a
// key as Treasure Data makes them, and of none, that is nothing.
func KeyFindings(key string) (found Findings) {
	switch _, secret, _ := strings.Cut(key, "/"); {
	case key == "":
	case postback.UsualKey(key):
		if len(secret) < usualSecret {
			found.Add(CutKey)
		}
	case isTemplate(key):
		found.Add(TemplateKey)
	default:
		found.Add(UnusualKey)
	}
	return found
}

// isTemplate reports whether a key is what stands in a template, or what a program
// writes that has no key: YOUR_KEY, {{KEY}}, ${KEY}, %KEY%, <key>, [KEY], __KEY__,
// undefined.
func isTemplate(key string) bool {
	for _, word := range []string{"undefined", "null", "nil", "none", "nan", "key", "apikey", "write_key", "td_write_key", "[object Object]"} {
		if strings.EqualFold(key, word) {
			return true
		}
	}
	for _, sign := range []string{"{", "}", "<", ">", "[", "]", "$"} {
		if strings.Contains(key, sign) {
			return true
		}
	}
	for _, sign := range []string{"%", "__"} {
		if len(key) > 2*len(sign) && strings.HasPrefix(key, sign) && strings.HasSuffix(key, sign) {
			return true
		}
	}
	return containsWord(key, "your") || containsWord(key, "xxxx")
}

// containsWord reports whether a text has a word in it, in small letters or large ones.
func containsWord(text, word string) bool {
	for i := 0; i+len(word) <= len(text); i++ {
		if strings.EqualFold(text[i:i+len(word)], word) {
			return true
		}
	}
	return false
}
