package migration

import "github.com/td-postback/gateway/postback"

// KeyFindings is what is worth a note about a write key, by its form alone: that a part
// of it is missing, that it is a template's word, or that it is something else. Of a
// key as Treasure Data makes them, and of none, that is nothing.
func KeyFindings(key string) (found Findings) {
	if key == "" {
		return 0
	}
	switch postback.KeyFormOf(key) {
	case postback.KeyUsual:
	case postback.KeyCut:
		found.Add(CutKey)
	case postback.KeyTemplate:
		found.Add(TemplateKey)
	case postback.KeyUnusual:
		found.Add(UnusualKey)
	}
	return found
}
