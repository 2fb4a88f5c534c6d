package migration

import (
	"strings"
	"testing"
)

var redacted = []struct{ method, query, body, want string }{
	{"GET", "td_write_key=1234%2F0123456789abcdef&td_format=pixel&id=secret&name=secret", "", "GET ?td_write_key=…&td_format=…&id=string&name=string"},
	{"GET", "secret", "", "GET ?…"},
	{"GET", "=secret&a=", "", "GET ?…=string&a=string"},
	{"GET", "jane%40secret.example=1&secr%zzet=1&%69d=2", "", "GET ?…=string&…&id=string"},
	{"POST", "", `{"id":1,"name":"secret","on":true,"off":false,"none":null,"tags":["secret"],"more":{"secret":1}}`,
		`POST {"id":number,"name":string,"on":boolean,"off":boolean,"none":null,"tags":array,"more":object}`},
	{"POST", "td_write_key=secret", `{"id":-1}`, `POST ?td_write_key=… {"id":number}`},
	{"POST", "", `{"secret@shop.example":1,"":2,"1234/0123456789abcdef":3,"a0123456789abcdef":4}`, `POST {"…":number,"…":number,"…":number,"…":number}`},
	{"POST", "u4915112345678=1&day_20261128=2&n123456789=3", `{"user_4915112345678":1,"t12345678":2}`, `POST ?…=string&day_20261128=string&…=string {"…":number,"t12345678":number}`},
	{"POST", "", `{"#UUID":"secret","keen":{}}`, `POST {"#UUID":string,"keen":object}`},
	{"POST", "", `{"a":"secr`, `POST {"a":…}`},
	{"POST", "", `{"a":1,secret}`, `POST {"a":number}`},
	{"POST", "", `["secret"]`, "POST …"},
	{"POST", "", `secret=1&b=2`, "POST …"},
	{"POST", "", `{}`, "POST {}"},
	{"POST", "", "\x1f\x8b\x08secret", "POST …"},
	{"SECRET", "", "", "…"},
	{"POST", "", `{"pad":"` + strings.Repeat("x", maxRedacted) + `"}`, `POST {"pad":…}`},
}

func TestRedact(t *testing.T) {
	for _, test := range redacted {
		if got := Redact(test.method, test.query, []byte(test.body)); got != test.want {
			t.Errorf("%s ?%s %.100s: %q, want %q", test.method, test.query, test.body, got, test.want)
		}
	}
	if got := Redact("GET", strings.Repeat("column=1&", 1000), nil); len(got) > maxExample || !strings.HasSuffix(got, cutMark) {
		t.Errorf("many columns: %q", got)
	}
}

// FuzzRedact hides a value in a query and a body, wherever the fuzzer wants it.
func FuzzRedact(f *testing.F) {
	for _, test := range redacted {
		f.Add(test.method, test.query, test.body, "a")
	}
	f.Fuzz(func(t *testing.T, method, query, body, name string) {
		const canary = "C-A:N%41A/R+Y" // as it stands, it is no name of a column
		expectFit(t, Redact(method, query, []byte(body)), maxExample)
		for _, got := range []string{
			Redact(method, query+"&"+name+"="+canary, []byte(body)),
			Redact(method, canary+"="+query, []byte(body)),
			Redact(method, query, []byte(`{"a":"`+canary+`",`+body)),
			Redact(method, query, []byte(`{"`+canary+`":`+body)),
			Redact(method, query, []byte(body+canary)),
		} {
			expectFit(t, got, maxExample)
			if strings.Contains(got, "C-A:N") || strings.Contains(got, "R+Y") {
				t.Errorf("%q has a value", got)
			}
		}
	})
}
