package sandbox_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

const key = "1234/0123abcd"

func request(method, target, body string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("X-TD-Write-Key", key)
	return r
}

// TestPrints looks at the line for each kind of request: what v2 takes, and why
// it refuses the others. No line has a key.
func TestPrints(t *testing.T) {
	const event = "/postback/v3/event/mydb/mytable"
	withoutKey := request(http.MethodPost, event, "{}")
	withoutKey.Header.Del("X-TD-Write-Key")
	byTD1 := request(http.MethodPost, event, `{"a": 1}`)
	byTD1.Header.Set("Authorization", "TD1 "+key)
	for _, c := range []struct {
		name   string
		r      *http.Request
		status int
		line   string
	}{
		{"a record", request(http.MethodPost, event, `{"a": 1}`), 200, `record mydb.mytable  key 1234/… via X-TD-Write-Key  {"a":1}`},
		{"a record by TD1", byTD1, 200, `record mydb.mytable  key 1234/… via Authorization  {"a":1}`},
		{"no object", request(http.MethodPost, event, `[1]`), 400, `refused mydb.mytable  key 1234/… via X-TD-Write-Key  400 the body must be one JSON object`},
		{"no key", withoutKey, 403, `refused mydb.mytable  no key  403 the write key must be in X-TD-Write-Key or Authorization: TD1`},
		{"a key in the URL", request(http.MethodPost, event+"?td_write_key="+key, "{}"), 400, `refused mydb.mytable  key 1234/… via X-TD-Write-Key  400 a write key in the URL is not accepted`},
		{"a pixel", request(http.MethodGet, event, ""), 405, `refused mydb.mytable  405 only POST is taken`},
		{"a path with a key", request(http.MethodPost, "/1234/0123abcd0123abcd", "{}"), 404, `refused  404 the path must be /postback/v3/event/{database}/{table}`},
		{"a path that may be a batch's, with a key", request(http.MethodPost, "/1234/0123abcd", "{}"), 401, `refused  no key  401 the write key must be in Authorization: TD1`},
		{"another path", request(http.MethodPost, "/d/t/", "{}"), 404, `refused  404 the path must be /postback/v3/event/{database}/{table}`},
		{"answer_400", request(http.MethodPost, "/postback/v3/event/d/answer_400", "{}"), 400, `refused d.answer_400  key 1234/… via X-TD-Write-Key  400 `},
		{"answer_403", request(http.MethodPost, "/postback/v3/event/d/answer_403", "{}"), 403, `refused d.answer_403  key 1234/… via X-TD-Write-Key  403 `},
		{"answer_422", request(http.MethodPost, "/postback/v3/event/d/answer_422", "{}"), 422, `refused d.answer_422  key 1234/… via X-TD-Write-Key  422 `},
		{"answer_206, which is for batches", request(http.MethodPost, "/postback/v3/event/d/answer_206", `{"refused":1}`), 200, `record d.answer_206  key 1234/… via X-TD-Write-Key  {"refused":1}`},
		{"answer_429", request(http.MethodPost, "/postback/v3/event/d/answer_429", "{}"), 429, `refused d.answer_429  key 1234/… via X-TD-Write-Key  429 `},
		{"answer_503", request(http.MethodPost, "/postback/v3/event/d/answer_503", "{}"), 503, `refused d.answer_503  key 1234/… via X-TD-Write-Key  503 `},
		{"answer_400 with a body that v2 refuses anyway", request(http.MethodPost, "/postback/v3/event/d/answer_503", "x"), 400, `refused d.answer_503  key 1234/… via X-TD-Write-Key  400 the body must be one JSON object`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			received := 0
			s := &sandbox.Sandbox{Out: &out, Received: func(sandbox.Record) { received++ }}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, c.r)
			line := out.String()
			if w.Code != c.status || (received == 1) != (c.status == 200) || !strings.HasPrefix(line, c.line) || strings.Count(line, "\n") != 1 {
				t.Errorf("got %d, %d records, %q", w.Code, received, line)
			}
			if strings.Contains(line, "0123abcd") {
				t.Errorf("the key is in %q", line)
			}
			if retry := w.Header().Get("Retry-After"); (retry == "30") != (c.status == 429) {
				t.Errorf("Retry-After %q", retry)
			}
			if body, _ := io.ReadAll(w.Body); (string(body) == "{}") != (c.status == 200) {
				t.Errorf("the answer is %s", body)
			}
		})
	}
}

// TestAnswerNever waits until the client has given up, and no longer than a few
// minutes.
func TestAnswerNever(t *testing.T) {
	const line = "refused d.answer_never  key 1234/… via X-TD-Write-Key  no answer\n"
	never := func(ctx context.Context) (line string, aborted bool) {
		var out bytes.Buffer
		defer func() { line, aborted = out.String(), recover() == http.ErrAbortHandler }() //nolint:errorlint // what net/http compares with
		r := request(http.MethodPost, "/postback/v3/event/d/answer_never", "{}")
		(&sandbox.Sandbox{Out: &out}).ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
		return "", false
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if got, aborted := never(ctx); got != line || !aborted || time.Since(began) != 30*time.Second {
			t.Errorf("got %q, %v after %s", got, aborted, time.Since(began))
		}
		began = time.Now()
		if got, aborted := never(t.Context()); got != line || !aborted || time.Since(began) < time.Minute || time.Since(began) > 10*time.Minute {
			t.Errorf("got %q, %v after %s", got, aborted, time.Since(began))
		}
	})
}

// TestAnswerNeverLetsGo is a client on a real connection that gives up.
func TestAnswerNeverLetsGo(t *testing.T) {
	reader, writer := io.Pipe()
	v2 := httptest.NewServer(&sandbox.Sandbox{Out: writer})
	ctx, giveUp := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, v2.URL+"/postback/v3/event/d/answer_never", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-TD-Write-Key", key)
	go func() {
		_, _ = reader.Read(make([]byte, 1000)) // the line: the request has arrived
		giveUp()
	}()
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_ = resp.Body.Close()
		t.Errorf("it has answered %s", resp.Status)
	}
	v2.Close() // which waits for the handler
}
