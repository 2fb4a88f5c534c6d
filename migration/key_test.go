package migration

import "testing"

var keys = []struct {
	key  string
	want Findings
}{
	{"", 0},
	{"1234/0123456789abcdef0123456789abcdef01234567", 0},
	{"1234/0123456789ABCDEF0123456789abcdef0123456789", 0},

	{"1234/0123456789abcdef0123456789abcdef0123456", setOf(CutKey)},
	{"1/a", setOf(CutKey)},

	{"YOUR_KEY", setOf(TemplateKey)},
	{"your-write-key", setOf(TemplateKey)},
	{"1234/YOUR_KEY", setOf(TemplateKey)},
	{"{{KEY}}", setOf(TemplateKey)},
	{"${TD_WRITE_KEY}", setOf(TemplateKey)},
	{"%KEY%", setOf(TemplateKey)},
	{"<key>", setOf(TemplateKey)},
	{"[WRITE_KEY]", setOf(TemplateKey)},
	{"__KEY__", setOf(TemplateKey)},
	{"__MACRO__", setOf(TemplateKey)},
	{"undefined", setOf(TemplateKey)},
	{"NULL", setOf(TemplateKey)},
	{"1/xxxxxxxxxxxxxxxx", setOf(TemplateKey)},

	{"0123456789abcdef0123456789abcdef01234567", setOf(CutKey)},
	{"1234", setOf(CutKey)},
	{"1234/", setOf(CutKey)},
	{"/0123456789abcdef", setOf(CutKey)},
	{"1234/0123456789abcdefg", setOf(UnusualKey)},
	{"1234%2F0123456789abcdef0123456789abcdef01234567", setOf(UnusualKey)}, // escaped twice
	{"____", setOf(UnusualKey)},
}

func TestKeyFindings(t *testing.T) {
	for _, test := range keys {
		if got := KeyFindings(test.key); got != test.want {
			t.Errorf("%q: %b, want %b", test.key, got, test.want)
		}
		if n := testing.AllocsPerRun(10, func() { KeyFindings(test.key) }); n > 0 {
			t.Errorf("%q: %.0f allocations", test.key, n)
		}
	}
}

// A key has at most one of these findings, and none makes its form a legacy one.
func FuzzKeyFindings(f *testing.F) {
	for _, test := range keys {
		f.Add(test.key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if got := KeyFindings(key); got&(got-1) != 0 || got.LegacyForm() || got == 0 && key != "" && len(key) < len("1/")+40 {
			t.Errorf("%q: %b", key, got)
		}
	})
}
