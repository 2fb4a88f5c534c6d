package postback

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, tc := range []struct {
		patterns []string
		has, not string // names, separated by spaces
	}{
		{nil, "", "a shop"},
		{[]string{"shop"}, "shop", "Shop sho shop_ shops"},
		{[]string{"shop", "app"}, "shop app", "shopapp"},
		{[]string{"shop*"}, "shop shops shop_jp", "sho Shop ashop"},
		{[]string{"shop*", "app", "x_*"}, "shop app x_ x_1", "x apps"},
		{[]string{"*"}, "a shop", ""},
	} {
		names := NamesOf(tc.patterns)
		for name := range strings.FieldsSeq(tc.has) {
			if !names.Has(name) {
				t.Errorf("%q lack %s", tc.patterns, name)
			}
		}
		for name := range strings.FieldsSeq(tc.not) {
			if names.Has(name) {
				t.Errorf("%q have %s", tc.patterns, name)
			}
		}
	}
	if all := NamesOf([]string{"*"}); all.Has("") {
		t.Error("* has no name")
	}
	for pattern, valid := range map[string]bool{
		"shop": true, "shop_1*": true, "*": true,
		"": false, "**": false, "*shop": false, "sh*op": false, "shop.orders": false, "shop-1": false, "shop *": false,
	} {
		if ValidNamePattern(pattern) != valid {
			t.Errorf("%q: valid is %v", pattern, !valid)
		}
	}
}

func TestAccountOf(t *testing.T) {
	for key, want := range map[string]string{
		"1234/0123abcd": "1234", "1/x": "1", "01/ab": "01",
		"": "", "1234": "", "/ab": "", "a1/ab": "", "-1/ab": "", "1234%2Fab": "", strings.Repeat("1", 21) + "/ab": "",
	} {
		if got := AccountOf(key); got != want {
			t.Errorf("%s: got %q", key, got)
		}
	}
}

// TestPolicy: a key that the accounts or the list know is known, and without either
// every key is.
func TestPolicy(t *testing.T) {
	list := keyList(t, "77/abcd\n")
	for _, tc := range []struct {
		accounts, databases []string
		list                *KeyList
		keys, noKeys        string
		databasesOf, not    string
	}{
		{nil, nil, nil, "1234/ab 77/ff x", "", "shop", ""},
		{[]string{"1234"}, nil, nil, "1234/ab 1234/zz", "123/ab 12345/ab 77/abcd 1234 x01234/ab", "shop", ""},
		{nil, nil, list, "77/abcd", "77/abce 77/ABCD 1234/ab 77/abcd/ 77", "shop", ""},
		{[]string{"1234", "5"}, []string{"shop", "app_*"}, list, "77/abcd 1234/ab 5/ab", "77/abce 6/ab", "shop app_ app_1", "app shops"},
	} {
		p := NewPolicy(tc.accounts, tc.databases, tc.list != nil)
		for key := range strings.FieldsSeq(tc.keys) {
			if !p.KnowsKey(key, tc.list) {
				t.Errorf("%q does not know %s", tc.accounts, key)
			}
		}
		for key := range strings.FieldsSeq(tc.noKeys) {
			if p.KnowsKey(key, tc.list) {
				t.Errorf("%q knows %s", tc.accounts, key)
			}
		}
		for name := range strings.FieldsSeq(tc.databasesOf) {
			if !p.KnowsDatabase(name) {
				t.Errorf("%q does not know %s", tc.databases, name)
			}
		}
		for name := range strings.FieldsSeq(tc.not) {
			if p.KnowsDatabase(name) {
				t.Errorf("%q knows %s", tc.databases, name)
			}
		}
	}
}

// TestPolicyKnowsTheKeyOfV2 checks the key that v2 would use, wherever it is: in each
// row another key beside it is one that the policy knows, or does not.
func TestPolicyKnowsTheKeyOfV2(t *testing.T) {
	const good, bad = "1234/0123abcd", "66/0123abcd"
	p := NewPolicy([]string{"1234"}, nil, false)
	for _, tc := range []struct {
		name, target, header, authorization string
		knows                               bool
	}{
		{"param", "/postback/v3/event/d/t?td_write_key=" + good, "", "", true},
		{"param, unknown", "/postback/v3/event/d/t?td_write_key=" + bad, "", "", false},
		{"the first param wins", "/postback/v3/event/d/t?td_write_key=" + bad + "&td_write_key=" + good, "", "", false},
		{"the first that is not empty wins", "/postback/v3/event/d/t?td_write_key=&td_write_key=" + good, "", "", true},
		{"an encoded name", "/postback/v3/event/d/t?%74d_write_key=" + bad, "", "", false},
		{"an encoded slash", "/postback/v3/event/d/t?td_write_key=1234%2F0123abcd", "", "", true},
		{"the header wins over the URL", "/postback/v3/event/d/t?td_write_key=" + good, bad, "", false},
		{"the header wins over the URL, known", "/postback/v3/event/d/t?td_write_key=" + bad, good, "", true},
		{"an empty header does not win", "/postback/v3/event/d/t?td_write_key=" + bad, " ", "", false},
		{"beside a param, Authorization is dropped", "/postback/v3/event/d/t?td_write_key=" + bad, "", "TD1 " + good, false},
		{"header", "/postback/v3/event/d/t", good, "", true},
		{"header, another scheme", "/postback/v3/event/d/t", bad, "Basic " + good, false},
		{"Authorization wins over the header", "/postback/v3/event/d/t", good, "TD1 " + bad, false},
		{"Authorization wins over the header, known", "/postback/v3/event/d/t", bad, "td1 " + good, true},
		{"Authorization alone", "/postback/v3/event/d/t", "", "TD1 " + bad, false},
		{"cut at a fragment", "/postback/v3/event/d/t?td_write_key=" + bad + "%231234/0123abcd", "", "", false},
		{"api_key is no key of Postback", "/postback/v3/event/d/t?td_write_key=" + bad + "&api_key=" + good, "", "", false},
		{"js, api_key", "/js/v3/event/d/t?api_key=" + bad, "", "", false},
		{"js, td_write_key wins over api_key", "/js/v3/event/d/t?api_key=" + good + "&td_write_key=" + bad, "", "", false},
		{"js, the header wins", "/js/v3/event/d/t?api_key=" + good, bad, "", false},
		{"js, Authorization is last", "/js/v3/event/d/t?api_key=" + bad, "", "TD1 " + good, false},
		{"k, the header wins", "/js/v3/event?api_key=" + good, bad, "", false},
		{"mobile", "/android/v3/event", bad, "TD1 " + good, false},
	} {
		r, err := http.NewRequest(http.MethodPost, tc.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tc.header != "" {
			r.Header.Set(WriteKeyHeader, tc.header)
		}
		if tc.authorization != "" {
			r.Header.Set("Authorization", tc.authorization)
		}
		c, refused := ReadCall(r, AllSurfaces)
		if refused == nil {
			refused = c.ReadKey(r.URL.RawQuery, r.Header)
		}
		if refused != nil {
			t.Fatal(tc.name, refused.Message)
		}
		if got := p.KnowsKey(c.Key(), nil); got != tc.knows {
			t.Errorf("%s: knows the key is %v", tc.name, got)
		}
	}
}

func keyList(t testing.TB, text string) *KeyList {
	t.Helper()
	list, err := ReadKeyList([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestReadKeyList(t *testing.T) {
	sum := sha256.Sum256([]byte("5/ab"))
	hash := "sha256:" + hex.EncodeToString(sum[:])
	const key = "1234/0123456789abcdef0123456789abcdef01234567"
	for name, tc := range map[string]struct {
		text    string
		keys    string
		problem string
	}{
		"one":                        {text: key + "\n", keys: key},
		"no line break":              {text: key, keys: key},
		"line breaks of Windows":     {text: key + "\r\n5/ab\r\n", keys: key + " 5/ab"},
		"a byte-order mark":          {text: "\ufeff" + key + "\n", keys: key},
		"labels":                     {text: key + " the shop, 2026/11\n5/ab\t# the app\n", keys: key + " 5/ab"},
		"comments and blank lines":   {text: "# keys\n\n  \n  # more\n" + key + "\n", keys: key},
		"indented":                   {text: "  " + key + "  \n", keys: key},
		"a hash":                     {text: hash + "\n", keys: "5/ab"},
		"a hash in capitals":         {text: "sha256:" + strings.ToUpper(hash[7:]) + " label\n", keys: "5/ab"},
		"twice":                      {text: "5/ab\n" + hash + "\n", keys: "5/ab"},
		"empty":                      {problem: "there is no key in it"},
		"comments alone":             {text: "# keys\n\n", problem: "there is no key in it"},
		"no slash":                   {text: "\n# x\nYOUR_KEY\n", problem: "line 3: must be a write key"},
		"the secret alone":           {text: key[5:] + "\n", problem: "line 1: must be a write key"},
		"an escaped slash":           {text: "1234%2F0123abcd\n", problem: "line 1: must be a write key"},
		"nothing behind the slash":   {text: key + "\n1234/\n", problem: "line 2: must be a write key"},
		"a quote":                    {text: "\"" + key + "\"\n", problem: "line 1: must be a write key"},
		"a comma":                    {text: key + ",shop\n", problem: "line 1: must be a write key"},
		"a label without a space":    {text: key + "#shop\n", problem: "line 1: must be a write key"},
		"a label first":              {text: "shop " + key + "\n", problem: "line 1: has a second key"},
		"two keys":                   {text: "5/ab " + key + "\n", problem: "line 1: has a second key"},
		"a short hash":               {text: hash[:len(hash)-1] + "\n", problem: "line 1: must have 64 hexadecimal digits"},
		"a long hash":                {text: hash + "00\n", problem: "line 1: must have 64 hexadecimal digits"},
		"another encoding":           {text: "\xff\xfe1\x00/\x00a\x00\n\x00", problem: "line 1: must be a write key"},
		"a key of more than a KiB":   {text: "1/" + strings.Repeat("a", 1024) + "\n", problem: "line 1: must be a write key"},
		"what is no account":         {text: strings.Repeat("1", 21) + "/ab\n", problem: "line 1: must be a write key"},
		"sha256sum's own line":       {text: hash[7:] + "  -\n", problem: "line 1: must be a write key"},
		"a good line before a wrong": {text: "5/ab\n5/ac\nx\n", problem: "line 3: must be a write key"},
	} {
		list, err := ReadKeyList([]byte(tc.text))
		if tc.problem != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tc.problem) {
				t.Errorf("%s: %v", name, err)
			} else if strings.Contains(err.Error(), "0123") || strings.Contains(err.Error(), "YOUR") {
				t.Errorf("%s: the text of a line is in %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		keys := strings.Fields(tc.keys)
		if list.Len() != len(keys) {
			t.Errorf("%s: %d keys", name, list.Len())
		}
		for _, key := range keys {
			if !list.Has(key) || list.Has(key+"0") || list.Has(key[:len(key)-1]) {
				t.Errorf("%s: %s", name, key)
			}
		}
	}
}

// FuzzKeyList: a list that is read has each of its keys and nothing else, and an error
// quotes nothing.
func FuzzKeyList(f *testing.F) {
	f.Add("1234/0123abcd", "shop", "sha256:00", true)
	f.Add("5/ab", "# x", "\r\n\ufeff1/2", false)
	f.Fuzz(func(t *testing.T, key, label, more string, hashed bool) {
		word := key
		if hashed {
			sum := sha256.Sum256([]byte(key))
			word = "sha256:" + hex.EncodeToString(sum[:])
		}
		list, err := ReadKeyList([]byte(word + " " + label + "\n" + more))
		if err != nil {
			if len(err.Error()) > 200 {
				t.Errorf("%.400s", err)
			}
			return
		}
		if hashed != list.Has(key) && hashed {
			t.Errorf("%q is not in the list", key)
		}
		if list.Len() > strings.Count(label+more, "\n")+2 {
			t.Errorf("%d keys", list.Len())
		}
		for line := range strings.SplitSeq(word+" "+label+"\n"+more, "\n") {
			first, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "\ufeff")), " ")
			if strings.HasPrefix(first, "#") || strings.HasPrefix(first, "sha256:") || strings.ContainsAny(first, "\t\r\v\f") {
				continue
			}
			if first != "" && !list.Has(first) && strings.IndexFunc(first, func(r rune) bool { return r > '~' }) < 0 {
				t.Errorf("%q is not in the list", first)
			}
		}
	})
}

// TestPolicyAllocations: a look at a key of the usual length costs no memory.
func TestPolicyAllocations(t *testing.T) {
	p, list := NewPolicy([]string{"9"}, []string{"shop*"}, true), keyList(t, "5/ab\n"+benchKey+"\n")
	if n := testing.AllocsPerRun(100, func() {
		if !p.KnowsKey(benchKey, list) || !p.KnowsDatabase("shop_1") {
			t.Fatal("unknown")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkPolicy looks for a key among 100,000, and for its database.
func BenchmarkPolicy(b *testing.B) {
	var text strings.Builder
	for n := range 100_000 {
		_, _ = fmt.Fprintf(&text, "%d/%040x\n", n, n)
	}
	text.WriteString(benchKey)
	p, list := NewPolicy([]string{"9"}, []string{"shop*", "app"}, true), keyList(b, text.String())
	b.ReportAllocs()
	for b.Loop() {
		if !p.KnowsKey(benchKey, list) || !p.KnowsDatabase("app") {
			b.Fatal("unknown")
		}
	}
}

// TestKeyListOfLineBreaks: a file that is damaged costs no more memory than one that has
// as many bytes of keys.
func TestKeyListOfLineBreaks(t *testing.T) {
	text := append(bytes.Repeat([]byte("\n"), 1<<20), "1/a"...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	list, err := ReadKeyList(text)
	runtime.ReadMemStats(&after)
	if err != nil || !list.Has("1/a") {
		t.Fatal(err)
	}
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(8<<20); got > most {
		t.Errorf("%d bytes for a file of %d", got, len(text))
	}
}

// TestKeyListsTogether: lists are equal with the same keys, however they are written, and
// two together have the keys of both.
func TestKeyListsTogether(t *testing.T) {
	read := func(text string) *KeyList {
		t.Helper()
		list, err := ReadKeyList([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	one, two := read("1/aa\n1/bb\n"), read("# 2\n1/bb label\n1/cc")
	if one.Equal(two) || !one.Equal(read("1/bb\n\n1/aa x\n")) || one.Equal(read("1/aa")) {
		t.Error("other keys are equal, or the same are not")
	}
	both := one.With(two)
	if both.Len() != 3 || !both.Has("1/aa") || !both.Has("1/bb") || !both.Has("1/cc") || one.Has("1/cc") || two.Has("1/aa") {
		t.Errorf("%d keys together", both.Len())
	}
}
