package sandbox_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

const (
	v1     = "application/vnd.treasuredata.v1+json"
	single = "application/vnd.treasuredata.v1.single+json"
	js     = "application/vnd.treasuredata.v1.js+json"
	mobile = "application/vnd.treasuredata.v1.mobile+json"

	uuid = "08289530-0000-4000-8000-00000000000a"
)

// batch is a request as v2's own clients send it, with these headers changed; an
// empty value takes one away.
func batch(body string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/mydb/mytable", strings.NewReader(body))
	r.Header = http.Header{"Authorization": {"TD1 " + key}, "Content-Type": {v1}, "Accept": {v1}}
	for pair := range slices.Chunk(headers, 2) {
		if r.Header.Set(pair[0], pair[1]); pair[1] == "" {
			r.Header.Del(pair[0])
		}
	}
	return r
}

// batchTo is batch with another method or target.
func batchTo(method, target, body string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header = batch("").Header
	return r
}

func gzipped(body string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, body)
	_ = w.Close()
	return b.String()
}

func events(records ...string) string { return `{"events":[` + strings.Join(records, ",") + `]}` }

// sized is a record of this many bytes.
func sized(n int) string { return `{"a":"` + strings.Repeat("x", n-8) + `"}` }

// repeated is n times the same record.
func repeated(n int, record string) []string { return slices.Repeat([]string{record}, n) }

// answered is what a caller and the terminal get for a request.
type answered struct {
	status   int
	receipts []struct {
		Success     bool
		UUID, Error string
	}
	fault  string // why all of it is refused
	header http.Header
	lines  []string
	taken  []sandbox.Record
}

// ask sends a request to a sandbox.
func ask(t *testing.T, s *sandbox.Sandbox, r *http.Request) (got answered) {
	t.Helper()
	var out bytes.Buffer
	s.Out, s.Received = &out, func(r sandbox.Record) { got.taken = append(got.taken, r) }
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	var answer struct {
		Receipts json.RawMessage
		Error    string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("the answer is %q, %s", w.Header(), w.Body)
	}
	if answer.Receipts != nil {
		if err := json.Unmarshal(answer.Receipts, &got.receipts); err != nil {
			t.Error(err)
		}
	}
	got.status, got.fault, got.header = w.Code, answer.Error, w.Header()
	got.lines = slices.Collect(strings.Lines(out.String()))
	if strings.Contains(out.String(), "0123abcd") {
		t.Errorf("the key is in %q", &out)
	}
	return got
}

// TestBatch has requests that v2 takes, and what is printed of each record.
func TestBatch(t *testing.T) {
	const line = "record mydb.mytable  key 1234/… via Authorization, by batch  "
	for _, c := range []struct {
		name string
		r    *http.Request
		want []string // records as they are printed
	}{
		{"one", batch(events(`{"a":1}`)), []string{`{"a":1}`}},
		{"several, with white space", batch(" { \"events\" : [ {\"a\" : 1} ,\n{} ] } "), []string{`{"a":1}`, `{}`}},
		{"records", batch(`{"records":[{"a":1}]}`), []string{`{"a":1}`}},
		{"a name in escapes", batch(`{"\u0065vents":[{"\u0061":1}]}`), []string{`{"\u0061":1}`}},
		{"a time, and a uuid that is not stored", batch(events(`{"time":1700000000,"a":"<é\u00e9>","uuid":"` + uuid + `"}`)), []string{`{"time":1700000000,"a":"<é\u00e9>"}`}},
		{"a uuid first, and in capitals", batch(events(`{ "UUID" : "` + strings.ToUpper(uuid) + `" , "a":[1, 2], "b":{"uuid":1} }`)), []string{`{"a":[1,2],"b":{"uuid":1}}`}},
		{"nothing but a uuid", batch(events(`{"uuid":"` + uuid + `"}`)), []string{`{}`}},
		{"single", batch(` {"a":1} `, "Content-Type", single, "Accept", single), []string{`{"a":1}`}},
		{"js", batch(events(`{}`), "Content-Type", js, "Accept", js), []string{`{}`}},
		{"mobile", batch(events(`{}`), "Content-Type", mobile, "Accept", mobile), []string{`{}`}},
		{"a type in capitals", batch(events(`{}`), "Content-Type", strings.ToUpper(v1)), []string{`{}`}},
		{"gzip", batch(gzipped(events(`{"a":1}`)), "Content-Encoding", "gzip"), []string{`{"a":1}`}},
		{"modified and time in the query", batchTo(http.MethodPost, "/mydb/mytable?modified=1700000000000&time=1", events(`{}`)), []string{`{}`}},
		{"as many as there may be", batch(events(repeated(500, `{}`)...)), repeated(500, `{}`)},
		{"as large as a record may be", batch(events(sized(1_000_000))), []string{sized(1_000_000)}},
		{"as large as all may be", batch(events(append(repeated(4, sized(1_000_000)), sized(999_994))...)), append(repeated(4, sized(1_000_000)), sized(999_994))},
		{"no member refused beside answer_206", batch(events(`{"refused":1}`)), []string{`{"refused":1}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ask(t, &sandbox.Sandbox{}, c.r)
			if got.status != 200 || len(got.receipts) != len(c.want) || len(got.lines) != len(c.want) || len(got.taken) != len(c.want) {
				t.Fatalf("got %d %s, %d receipts, %d lines, %d records", got.status, got.fault, len(got.receipts), len(got.lines), len(got.taken))
			}
			for n, want := range c.want {
				if got.lines[n] != line+want+"\n" {
					t.Errorf("got %.200q", got.lines[n])
				}
				receipt, record := got.receipts[n], got.taken[n]
				if !receipt.Success || !isUUID(receipt.UUID) || record.UUID != "" && receipt.UUID != record.UUID {
					t.Errorf("got the receipt %+v", receipt)
				}
				if !record.Batch || record.Via != "Authorization" || record.Key != key || record.Database != "mydb" || record.Table != "mytable" {
					t.Errorf("got %+v", record)
				}
			}
		})
	}
}

// isUUID reports whether a text is a UUID of RFC 9562, in lower case.
func isUUID(text string) bool {
	return regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(text)
}

// TestBatchRecord looks at what the record has of its request: its bytes, and its
// uuid.
func TestBatchRecord(t *testing.T) {
	body := `{ "a" : 1.0, "uuid": "` + strings.ToUpper(uuid) + `" }`
	got := ask(t, &sandbox.Sandbox{}, batch(events(body, "{}"), "X-Own", "1"))
	if len(got.taken) != 2 {
		t.Fatalf("got %+v", got)
	}
	if r := got.taken[0]; string(r.Body) != body || r.UUID != uuid || r.Header.Get("X-Own") != "1" {
		t.Errorf("got %+v", r)
	}
	if r := got.taken[1]; r.UUID != "" {
		t.Errorf("got %+v", r)
	}
	if got.receipts[0].UUID != uuid || got.receipts[1].UUID == uuid {
		t.Errorf("got %+v", got.receipts)
	}
}

// TestBatchRefused has requests of which v2 takes nothing.
func TestBatchRefused(t *testing.T) {
	const line = "refused mydb.mytable  key 1234/… via Authorization, by batch  "
	broken := gzipped(events(`{}`))
	for _, c := range []struct {
		name   string
		r      *http.Request
		status int
		says   string
	}{
		{"no key", batch(events(`{}`), "Authorization", ""), 401, "the write key must be in Authorization: TD1"},
		{"a key for Postback", batch(events(`{}`), "Authorization", "", "X-TD-Write-Key", key), 401, "the write key must be in Authorization: TD1"},
		{"another scheme", batch(events(`{}`), "Authorization", "Bearer "+key), 401, "the write key must be in Authorization: TD1"},
		{"an empty key", batch(events(`{}`), "Authorization", "TD1 "), 401, "the write key must be in Authorization: TD1"},
		{"GET", batchTo(http.MethodGet, "/mydb/mytable", ""), 405, "only POST is taken"},
		{"a key in the URL", batchTo(http.MethodPost, "/mydb/mytable?td_write_key="+key, events(`{}`)), 400, "the query may have modified and time, and nothing else"},
		{"another parameter", batchTo(http.MethodPost, "/mydb/mytable?modified=1&a=1", events(`{}`)), 400, "the query may have modified and time, and nothing else"},
		{"a query that cannot be read", batchTo(http.MethodPost, "/mydb/mytable?modified=%zz", events(`{}`)), 400, "the query may have modified and time, and nothing else"},

		{"JSON", batch(events(`{}`), "Content-Type", "application/json", "Accept", "application/json"), 415, "Content-Type must be " + v1},
		{"no type", batch(events(`{}`), "Content-Type", ""), 415, "Content-Type must be " + v1},
		{"a type with a charset", batch(events(`{}`), "Content-Type", v1+"; charset=utf-8"), 415, "Content-Type must be " + v1},
		{"no Accept", batch(events(`{}`), "Accept", ""), 400, "Accept must be the same as Content-Type"},
		{"another Accept", batch(events(`{}`), "Accept", "*/*"), 400, "Accept must be the same as Content-Type"},
		{"deflate", batch(events(`{}`), "Content-Encoding", "deflate"), 415, "Content-Encoding may be gzip, and nothing else"},
		{"gzip twice", batch(gzipped(gzipped(events(`{}`))), "Content-Encoding", "gzip, gzip"), 415, "Content-Encoding may be gzip, and nothing else"},
		{"no gzip", batch(events(`{}`), "Content-Encoding", "gzip"), 400, "the body is not in gzip"},
		{"half of gzip", batch(broken[:len(broken)-5], "Content-Encoding", "gzip"), 400, "the body is broken or ended early"},
		{"gzip and more", batch(broken+"x", "Content-Encoding", "gzip"), 400, "the body is broken or ended early"},
		{"gzip that is not said", batch(broken), 400, "the body is not UTF-8"},

		{"no object", batch(`[{}]`), 400, "the body must be one JSON object"},
		{"two objects", batch(events(`{}`) + events(`{}`)), 400, "the body must be one JSON object"},
		{"nothing", batch(``), 400, "the body must be one JSON object"},
		{"a comma too many", batch(events(`{}`, ``)), 400, "the body must be one JSON object"},
		{"no UTF-8", batch(events("{\"a\":\"\xff\"}")), 400, "the body is not UTF-8"},
		{"no events", batch(`{}`), 400, "missing parameter: events"},
		{"another name", batch(`{"event":[{}]}`), 400, "the body must have one member, events or records"},
		{"events and records", batch(`{"events":[{}],"records":[{}]}`), 400, "the body must have one member, events or records"},
		{"events twice", batch(`{"events":[{}],"events":[{}]}`), 400, "the body must have one member, events or records"},
		{"no array", batch(`{"events":{}}`), 400, "events must be an array"},
		{"null", batch(`{"records":null}`), 400, "records must be an array"},
		{"a bare object", batch(`{"a":1}`), 400, "the body must have one member, events or records"},
		{"none", batch(events()), 400, "events size must be between 1 and 500"},
		{"501", batch(events(repeated(501, `{}`)...)), 400, "events size must be between 1 and 500"},
		{"a record that is too large", batch(events(`{}`, sized(1_000_001))), 413, "record 2 of 2: it has more than 1000000 bytes"},
		{"too large together", batch(events(append(repeated(4, sized(1_000_000)), sized(999_995))...)), 413, "the records have more than 5000000 bytes"},
		{"too large together, in gzip", batch(gzipped(events(repeated(6, sized(1_000_000))...)), "Content-Encoding", "gzip"), 413, "the records have more than 5000000 bytes"},

		{"an array among records", batch(events(`{}`, `[]`)), 422, "record 2 of 2: it must be one JSON object"},
		{"a null among records", batch(events(`null`)), 422, "record 1 of 1: it must be one JSON object"},
		{"single, and no object", batch(`[]`, "Content-Type", single, "Accept", single), 422, "record 1 of 1: it must be one JSON object"},
		{"a uuid that is none", batch(events(`{"uuid":"x"}`)), 422, "record 1 of 1: its uuid is not valid"},
		{"a uuid in braces", batch(events(`{"uuid":"{` + uuid + `}"}`)), 422, "record 1 of 1: its uuid is not valid"},
		{"a uuid without hyphens", batch(events(`{"uuid":"` + strings.ReplaceAll(uuid, "-", "") + `"}`)), 422, "record 1 of 1: its uuid is not valid"},
		{"an empty uuid", batch(events(`{"uuid":""}`)), 422, "record 1 of 1: its uuid is not valid"},
		{"a number for a uuid", batch(events(`{"uuid":1}`)), 422, "record 1 of 1: its uuid is not valid"},
		{"a null for a uuid", batch(events(`{"uuid":null}`)), 422, "record 1 of 1: its uuid is not valid"},
		{"a user's uuid in capitals", batch(events(`{"Uuid":"mine"}`)), 422, "record 1 of 1: its uuid is not valid"},
		{"two", batch(events(`{"uuid":"` + uuid + `","UUID":"` + uuid + `"}`)), 422, "record 1 of 1: it has two members uuid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ask(t, &sandbox.Sandbox{}, c.r)
			want := line
			if c.status == 401 {
				want = "refused  no key  "
			}
			want += strconv.Itoa(c.status) + " " + c.says
			if got.status != c.status || !strings.HasPrefix(got.fault, c.says) || got.receipts != nil || len(got.taken) != 0 ||
				len(got.lines) != 1 || !strings.HasPrefix(got.lines[0], want) {
				t.Errorf("got %d %q, %d records, %q, want %q", got.status, got.fault, len(got.taken), got.lines, want)
			}
		})
	}
}

// TestBatchTables has the tables that refuse on purpose.
func TestBatchTables(t *testing.T) {
	for table, status := range map[string]int{"answer_400": 400, "answer_403": 403, "answer_422": 422, "answer_429": 429, "answer_503": 503} {
		got := ask(t, &sandbox.Sandbox{}, batchTo(http.MethodPost, "/d/"+table, events(`{}`, `{}`)))
		if got.status != status || got.fault == "" || len(got.taken) != 0 || (got.header.Get("Retry-After") == "30") != (status == 429) {
			t.Errorf("%s: got %+v", table, got)
		}
		if want := fmt.Sprintf("refused d.%s  key 1234/… via Authorization, by batch  %d ", table, status); len(got.lines) != 1 || !strings.HasPrefix(got.lines[0], want) {
			t.Errorf("%s: got %q, want %q", table, got.lines, want)
		}
	}

	// Some fail, and are no repeats when they come again.
	s := &sandbox.Sandbox{}
	for range 2 {
		got := ask(t, s, batchTo(http.MethodPost, "/d/answer_206", events(`{"a":1}`, `{"refused":null,"uuid":"`+uuid+`"}`, `{"b":{"refused":1}}`)))
		if got.status != 206 || len(got.receipts) != 3 || !got.receipts[0].Success || got.receipts[1].Success || !got.receipts[2].Success {
			t.Fatalf("got %+v", got)
		}
		if failed := got.receipts[1]; failed.UUID != uuid || !strings.Contains(failed.Error, "refused") || len(got.taken) != 2 {
			t.Errorf("got %+v, %d records", failed, len(got.taken))
		}
		if want := "refused d.answer_206  key 1234/… via Authorization, by batch  206 a record with a member refused"; !strings.HasPrefix(got.lines[1], want) {
			t.Errorf("got %q", got.lines)
		}
	}
}

// TestBatchNever leaves a batch without an answer.
func TestBatchNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer func() {
			if recover() != http.ErrAbortHandler { //nolint:errorlint // what net/http compares with
				t.Error("it has answered")
			}
		}()
		(&sandbox.Sandbox{}).ServeHTTP(httptest.NewRecorder(), batchTo(http.MethodPost, "/d/answer_never", events(`{}`)))
	})
}

// TestBatchRepeats sends records again: within an hour they are taken for repeats,
// in the same request too, but not for another account or table.
func TestBatchRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sandbox.Sandbox{}
		record := `{"uuid":"` + uuid + `"}`
		check := func(what string, r *http.Request, sent, taken int) {
			t.Helper()
			got := ask(t, s, r)
			if got.status != 200 || len(got.receipts) != sent || len(got.taken) != taken || len(got.lines) != taken {
				t.Errorf("%s: got %d, %d receipts, %d records, %q", what, got.status, len(got.receipts), len(got.taken), got.lines)
			}
			for _, receipt := range got.receipts {
				if !receipt.Success {
					t.Errorf("%s: got %+v", what, receipt)
				}
			}
		}
		check("twice in one request", batch(events(record, record, `{}`)), 3, 2)
		check("again", batch(events(record)), 1, 0)
		check("in capitals", batch(events(strings.ReplaceAll(strings.ToUpper(record), "UUID", "uuid"))), 1, 0)
		check("another table", batchTo(http.MethodPost, "/mydb/other", events(record)), 1, 1)
		check("another database", batchTo(http.MethodPost, "/other/mytable", events(record)), 1, 1)
		check("another account", batch(events(record), "Authorization", "TD1 77/0123abcd"), 1, 1)
		check("another key of the account", batch(events(record), "Authorization", "TD1 1234/ffff"), 1, 0)
		check("no uuid", batch(events(`{}`)), 1, 1)
		check("no uuid, again", batch(events(`{}`)), 1, 1)
		time.Sleep(time.Hour - time.Second)
		check("nearly an hour later", batch(events(record)), 1, 0)
		time.Sleep(2 * time.Second)
		check("an hour later", batch(events(record)), 1, 1)
		check("and again", batch(events(record)), 1, 0)
	})
}

// TestBatchBroken has a caller that leaves within its body.
func TestBatchBroken(t *testing.T) {
	r := batch("")
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"events":[`), brokenReader{}))
	if got := ask(t, &sandbox.Sandbox{}, r); got.status != 400 || got.fault != "the body is broken or ended early" || len(got.taken) != 0 {
		t.Errorf("got %+v", got)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
