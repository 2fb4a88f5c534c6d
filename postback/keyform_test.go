package postback

import (
	"regexp"
	"strings"
	"testing"
)

var keyForms = map[KeyForm][]string{
	KeyUsual: {
		"1234/0123456789abcdef0123456789abcdef01234567", "1/0123456789ABCDEF0123456789abcdef01234567",
		"1234/0123456789abcdef0123456789abcdef0123456789", // of a longer one nothing is said
	},
	KeyCut: {
		"1234/0123456789abcdef0123456789abcdef0123456", "1/a", "1234", "1234/", "/0123456789abcdef0123456789abcdef01234567",
		"0123456789abcdef0123456789abcdef01234567", "9abcdef0123456789abcdef01234567", "1234/0123...4567", "1234/***", "1234/0123************4567",
	},
	KeyTemplate: {
		"YOUR_KEY", "your-write-key", "1234/YOUR_KEY", "{{KEY}}", "{{ KEY }}", "${TD_WRITE_KEY}", "$KEY", "%KEY%", "%%KEY%%", "%s", "1234/%s", "<key>", "<%=key%>",
		"[WRITE_KEY]", "[objectObject]", "*|KEY|*", "@KEY@", "__KEY__", "__MACRO__", "(null)", "undefined", "UNDEFINED", "undefined/undefined", "1234/undefined",
		"null", "None", "nil", "NaN", "true", "KEY", "td_write_key", "1234/xxxxxxxxxxxxxxxxxxxx", "1/XXXX", "changeme", "REPLACE_ME", "INSERT_KEY_HERE",
		"<account>/<key>", "1234/example",
	},
	KeyUnusual: {
		"", "/", "____", "%", "%%", "@@", "not-a-key", "abcdef0", "1234%2F0123456789abcdef0123456789abcdef01234567", "1234/0123456789abcdefg",
		"12x4/0123456789abcdef0123456789abcdef01234567", "1234/ab/cd", " 1234/abcd", "TD1:1234/abcd",
	},
}

func TestKeyFormOf(t *testing.T) {
	for want, keys := range keyForms {
		for _, key := range keys {
			if got := KeyFormOf(key); got != want {
				t.Errorf("%q: %s, want %s", key, got, want)
			}
			if n := testing.AllocsPerRun(10, func() { KeyFormOf(key) }); n > 0 {
				t.Errorf("%q: %v allocations", key, n)
			}
		}
	}
}

// FuzzKeyFormOf: no key as Treasure Data makes them is held for anything else, and
// nothing else for one. However much of its end is missing, it is cut.
func FuzzKeyFormOf(f *testing.F) {
	for _, keys := range keyForms {
		for _, key := range keys {
			f.Add(key, uint8(3))
		}
	}
	usual := regexp.MustCompile(`^[0-9]+/[0-9A-Fa-f]{40,}$`)
	shortest := regexp.MustCompile(`^[0-9]+/[0-9A-Fa-f]{40}$`)
	f.Fuzz(func(t *testing.T, key string, missing uint8) {
		form := KeyFormOf(key)
		if is := usual.MatchString(key); is != (form == KeyUsual) {
			t.Errorf("%q: %s", key, form)
		}
		if shortest.MatchString(key) && missing > 0 && int(missing) < len(key) {
			if got := KeyFormOf(key[:len(key)-int(missing)]); got != KeyCut {
				t.Errorf("%q without its last %d bytes: %s", key, missing, got)
			}
		}
		if upper := KeyFormOf(strings.ToUpper(key)); isASCII(key) && upper != form {
			t.Errorf("%q: %s in capitals, %s as it is", key, upper, form)
		}
	})
}

func isASCII(text string) bool {
	return hasOnly(text, func(c byte) bool { return c < 0x80 })
}
