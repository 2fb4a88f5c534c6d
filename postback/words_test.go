package postback

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestWords(t *testing.T) {
	const (
		secret = "0123456789abcdef0123456789abcdef01234567"
		odd    = "no-number!of.an(account)"
	)
	long := strings.Repeat("word ", 100)
	for _, tc := range []struct {
		name, text string
		cut        bool // the text is not whole
		key        string
		want       string
	}{
		{name: "nothing"},
		{name: "words", text: `{"error":"invalid JSON"}`, want: `{"error":"invalid JSON"}`},
		{name: "lines", text: "a\r\n\tb\x00c\x1b[31md\u202ee\u200bf\u00a0g ", want: "a b c [31md e f g"},
		{name: "no UTF-8", text: "a\xff\xfeb\xe2\x80", want: "a\ufffd\ufffdb\ufffd\ufffd"},
		{name: "long", text: long, want: long[:MaxWords]},
		{name: "cut between characters", text: strings.Repeat("é", 150), want: strings.Repeat("é", MaxWords/2)},
		{name: "cut within a character", text: "a" + strings.Repeat("é", 150), want: "a" + strings.Repeat("é", MaxWords/2-1)},
		{name: "another's key", text: "key 1234/" + secret + " is unknown", want: "key 1234/… is unknown"},
		{name: "a key that the cut would halve", text: strings.Repeat("x", 180) + " 1234/" + secret, want: strings.Repeat("x", 180) + " 1234/…"},
		{name: "a key that v2 has sent half of", text: `{"error":"unknown key 1234/0123456`, cut: true, key: "99/x", want: `{"error":"unknown key`},
		{name: "nothing but half a key", text: "1234/0123456", cut: true},
		{name: "a key beyond what is looked at", text: strings.Repeat(" ", wordsRoom-10) + "1234/" + secret},
		{name: "the key", text: "key 1234/" + secret + ".", key: "1234/" + secret, want: "key 1234/…."},
		{name: "its secret alone", text: "secret " + secret, key: "1234/" + secret, want: "secret …"},
		{name: "how its secret begins", text: "secret 01234567...", key: "1234/" + secret, want: "secret …..."},
		{name: "in capitals", text: "KEY 1234/" + strings.ToUpper(secret), key: "1234/" + secret, want: "KEY 1234/…"},
		{name: "an odd key", text: `"` + odd + `" is no key`, key: odd, want: `"…" is no key`},
		{name: "percent-encoded", text: "?k=no-number%21of.an%28account%29&a=1", key: odd, want: "?k=…&a=1"},
		{name: "percent-encoded, each of it", text: "%6e%6F-number!of.an(account)", key: odd, want: "…"},
		{name: "percent-encoded twice", text: "no-number%2521of.an%2528account%2529", key: odd, want: "…"},
		{name: "in JSON", text: `"no-number\u0021of.an(account)"`, key: odd, want: `"…"`},
		{name: "a short key", text: "the key 1/a is bad", key: "1/a", want: "the key … is bad"},
		{name: "no key", text: "bad", key: "", want: "bad"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Words([]byte(tc.text), !tc.cut, "", tc.key); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// FuzzWords looks for a key, a second line or too much of anything.
func FuzzWords(f *testing.F) {
	for _, seed := range []string{
		`{"error":"1234/0123456789abcdef0123"}`, "a\r\nb\xff", "%2525%25", `\u002f\/`, "secret%73ecret", strings.Repeat("é", 120), "TD1 secretsecret",
	} {
		f.Add([]byte(seed), true, "1234/0123456789abcdef0123")
		f.Add([]byte(seed), false, "secretsecret")
	}
	f.Fuzz(func(t *testing.T, text []byte, whole bool, key string) {
		if keyProblem(key) != "" {
			key = "" // it was not sent
		}
		got := Words(text, whole, key)
		if len(got) > MaxWords || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Errorf("%q", got)
		}
		if key != "" && strings.Contains(strings.ToLower(got), strings.ToLower(key)) {
			t.Errorf("%q has %q", got, key)
		}
		if _, secret, _ := strings.Cut(key, "/"); len(secret) >= leastKnown && strings.Contains(strings.ToLower(got), strings.ToLower(secret)) {
			t.Errorf("%q has the secret of %q", got, key)
		}
	})
}
