package caddymodule

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/td-postback/gateway/postback"
)

// TestJSMemory: whatever room there is, a call of a JavaScript SDK's is taken or
// refused with 503, and nothing of it stays counted.
func TestJSMemory(t *testing.T) {
	const target = "/js/v3/event/db/tbl?api_key=" + benchKey + "&callback=f"
	data := func(record string) string {
		return "&data=" + url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(record)))
	}
	large := `{"td_ip":"td_ip","a":"` + strings.Repeat("x", 200<<10) + `"}`
	for name, tc := range map[string]struct {
		method, query, body string
		status              int
	}{
		"data":                    {http.MethodGet, data(benchView), "", 200},
		"data, surrogates":        {http.MethodGet, data("{\"td_ip\":\"td_ip\",\"a\":\"\xed\xa0\xbd\xed\xb8\x80\"}"), "", 200},
		"data, bytes":             {http.MethodGet, data("{\"a\":\"" + strings.Repeat("\xff", 20<<10) + "\"}"), "", 200},
		"large data":              {http.MethodGet, data(large), "", 200},
		"data of a POST":          {http.MethodPost, data(benchView), "", 200},
		"bad data":                {http.MethodGet, "&data=" + strings.Repeat("A", 10<<10) + "!", "", 400},
		"data that is no JSON":    {http.MethodGet, data("no"), "", 400},
		"body":                    {http.MethodPost, "", benchView, 200},
		"body, nothing to fill":   {http.MethodPost, "", `{"a":1}`, 200},
		"body, bytes":             {http.MethodPost, "", "{\"a\":\"\xff\"}", 200},
		"large body":              {http.MethodPost, "", large, 200},
		"large body, no JSON":     {http.MethodPost, "", large[1:], 400},
		"body that grows too far": {http.MethodPost, "", "{\"a\":\"" + strings.Repeat("\xff", 600<<10) + "\"}", 413},
		"a bad callback":          {http.MethodPost, "&callback=(", large, 200}, // the second one is not looked at
		"none":                    {http.MethodPost, "", "", 400},
	} {
		t.Run(name, func(t *testing.T) {
			taken := false
			for room := int64(4 << 10); room < 8<<20; room += room/4 + 1 {
				h := stubHandler()
				h.bodies.maxTotal = room
				r := benchRequest(tc.method, target+tc.query, len(tc.body))
				r.Body = &stubBody{[]byte(tc.body)}
				w := httptest.NewRecorder()
				if err := h.ServeHTTP(w, r, nil); err != nil {
					t.Fatal(err)
				}
				if w.Code != tc.status && w.Code != postback.Overloaded.Status || taken && w.Code == postback.Overloaded.Status {
					t.Errorf("room of %d bytes: got %d %q", room, w.Code, w.Body)
				}
				taken = taken || w.Code == tc.status
				if left := h.bodies.inUse.Load(); left != 0 {
					t.Errorf("room of %d bytes: %d stay counted", room, left)
				}
				if w.Code == 200 != bytes.Contains(w.Body.Bytes(), []byte("created")) {
					t.Errorf("got %d %q", w.Code, w.Body)
				}
			}
			if !taken {
				t.Error("there is never room enough")
			}
		})
	}
}

// TestJSLeastMemory: the least max_buffered has room for a record of the largest size,
// whatever is to be made of it, and for a large head.
func TestJSLeastMemory(t *testing.T) {
	const frame = `{"td_ip":"td_ip","a":"` + "\xed\xa0\xbd\xed\xb8\x80" + `"}` // becomes smaller by two
	record := frame[:len(frame)-2] + strings.Repeat("x", postback.MaxBody-len(frame)-len("192.0.2.7")) + `"}`
	h := stubHandler()
	h.bodies.maxTotal = minBuffered
	r := benchRequest(http.MethodPost, "/js/v3/event/db/tbl?api_key="+benchKey, len(record))
	r.Header.Set("X-Large", strings.Repeat("x", postback.MaxHeaders-2000))
	r.Body = &stubBody{[]byte(record)}
	w := httptest.NewRecorder()
	if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != http.StatusOK {
		t.Errorf("got %d %q, %v", w.Code, w.Body, err)
	}
}

// TestJSCounted: while v2 is asked, the record is counted in max_buffered.
func TestJSCounted(t *testing.T) {
	for size := 100; size < postback.MaxBody; size = size*3 + 1 {
		record := fmt.Sprintf(`{"td_os":"td_os","a":"%s"}`, strings.Repeat("x", size))
		h := stubHandler()
		r := benchRequest(http.MethodPost, "/js/v3/event/db/tbl?api_key="+benchKey, len(record))
		r.Body = &stubBody{[]byte(record)}
		counted := int64(0)
		w := &watchWriter{ResponseRecorder: httptest.NewRecorder(), write: func() { counted = h.bodies.inUse.Load() }}
		if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != http.StatusOK {
			t.Fatal(err, w.Code)
		}
		if counted < int64(size) || counted > int64(3*size+16<<10) {
			t.Errorf("%d bytes: %d counted", size, counted)
		}
	}
}

// watchWriter tells when the answer begins.
type watchWriter struct {
	*httptest.ResponseRecorder
	write func()
}

func (w *watchWriter) WriteHeader(status int) {
	w.write()
	w.ResponseRecorder.WriteHeader(status)
}

// TestJSSaysWhichRecord: a refusal names what holds the record that is none.
func TestJSSaysWhichRecord(t *testing.T) {
	const target = "/js/v3/event/db/tbl?api_key=" + benchKey + "&data="
	for _, tc := range []struct {
		data, body string
		want       *postback.Refusal
	}{
		{"e30", "no", postback.NoObject},
		{"bm8", "no", postback.NoObject},
		{"", "no", postback.NoObject},
		{"bm8", "", postback.BadData},
		{"", "", postback.NoRecord},
	} {
		r := benchRequest(http.MethodPost, target+tc.data, len(tc.body))
		r.Body = &stubBody{[]byte(tc.body)}
		w := httptest.NewRecorder()
		if err := stubHandler().ServeHTTP(w, r, nil); err != nil || !strings.Contains(w.Body.String(), tc.want.Message) {
			t.Errorf("data %q, body %q: got %d %q, %v", tc.data, tc.body, w.Code, w.Body, err)
		}
	}
}
