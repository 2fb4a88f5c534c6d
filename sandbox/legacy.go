package sandbox

import (
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// This file is the legacy host.

// Legacy is a stand-in for the legacy host, as an http.Handler: it takes what callers
// send to any of its surfaces, answers as they expect, and prints what has come. It is
// for trying how calls are moved: it follows no td_redirect and has no global id. Its
// zero value works.
type Legacy struct {
	// Out gets one line for every event, and for every request that is refused, if it is
	// not nil.
	Out io.Writer

	mu sync.Mutex // one line at a time
}

var (
	// legacyPath is the path of one event, and legacyPaths of several.
	legacyPath  = regexp.MustCompile(`^/(postback|js)/v3/event/([A-Za-z0-9_]+)/([A-Za-z0-9_]+)/?$`)
	legacyPaths = regexp.MustCompile(`^/(js|android|ios)/v3/event/?$`)

	callbackForm = regexp.MustCompile(`^[A-Za-z_$][A-Za-z0-9_$.]*$`)
	keyForm      = regexp.MustCompile(`[0-9]+(/|%2[Ff])[0-9A-Fa-f]{4,}`)
)

// maxLegacyBody is the largest body that it reads, in bytes.
const maxLegacyBody = 32 << 20

// pixel is an image of one transparent pixel.
var pixel, _ = base64.StdEncoding.DecodeString("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")

// ServeHTTP answers one request.
func (l *Legacy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	allowOrigin(w.Header(), r)
	path := legacyPath.FindStringSubmatch(r.URL.Path)
	several := legacyPaths.MatchString(r.URL.Path)
	via, key := legacyKey(r)
	switch {
	case path == nil && !several:
		l.print("legacy  " + keyForm.ReplaceAllString(r.Method+" "+r.URL.EscapedPath(), "…") + "  404")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"not_found","message":"this stand-in for the legacy host takes nothing but events"}`)
	case r.Method == http.MethodOptions:
		w.WriteHeader(http.StatusNoContent)
	case key == "":
		l.refuse(w, r, http.StatusForbidden, "no write key")
	case several:
		l.serveSeveral(w, r, "key "+maskKey(key)+" via "+via)
	default:
		l.serveOne(w, r, path[1:], "key "+maskKey(key)+" via "+via)
	}
}

// serveOne takes one event of a surface, for a database and a table.
func (l *Legacy) serveOne(w http.ResponseWriter, r *http.Request, path []string, by string) {
	if refusal, ok := refusals[path[2]]; ok {
		l.refuse(w, r, refusal.status, refusal.message)
		return
	}
	query := r.URL.Query()
	event, err := legacyEvent(r, query.Get("data"))
	if err != nil {
		l.refuse(w, r, http.StatusBadRequest, "the event cannot be read")
		return
	}
	l.print(fmt.Sprintf("legacy %s.%s  %s  %s", path[1], path[2], by, event))
	callback := query.Get("callback")
	switch {
	case path[0] == "postback" && query.Get("td_format") == "pixel":
		w.Header().Set("Content-Type", "image/gif")
		_, _ = w.Write(pixel)
	case path[0] == "postback":
		answer(w, http.StatusOK, "")
	case callbackForm.MatchString(callback):
		w.Header().Set("Content-Type", "application/javascript")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, callback+`({"created":true})`)
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"created":true}`)
	}
}

// legacyEvent is what a request has as its event, for people: its body, the data of a
// page's, or else its query.
func legacyEvent(r *http.Request, data string) (string, error) {
	if data != "" {
		event, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(data, " ", "+"))
		return shown(event), err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxLegacyBody))
	if err != nil || len(body) > 0 {
		return shown(body), err
	}
	pairs := slices.DeleteFunc(strings.Split(r.URL.RawQuery, "&"), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(name)
		return err != nil || strings.Contains(strings.ToLower(plain), "key")
	})
	return r.Method + " " + keyForm.ReplaceAllString(strings.Join(pairs, "&"), "…"), nil
}

// serveSeveral takes a request with events of several tables.
func (l *Legacy) serveSeveral(w http.ResponseWriter, r *http.Request, by string) {
	tables, err := legacyTables(r)
	if err != nil {
		l.refuse(w, r, http.StatusBadRequest, "the events cannot be read")
		return
	}
	receipts := make(map[string][]map[string]bool, len(tables))
	for name, events := range tables {
		receipts[name] = []map[string]bool{}
		for _, event := range events {
			l.print(fmt.Sprintf("legacy %s  %s  %s", shownName(name), by, shown(event)))
			receipts[name] = append(receipts[name], map[string]bool{"success": true})
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(receipts)
}

// legacyTables reads the events of a request with several, which may be compressed.
func legacyTables(r *http.Request) (tables map[string][]json.RawMessage, err error) {
	body := r.Body.(io.Reader)
	switch r.Header.Get("Content-Encoding") {
	case "gzip":
		body, err = gzip.NewReader(body)
	case "deflate":
		body, err = zlib.NewReader(body)
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(body, maxLegacyBody))
	if err != nil {
		return nil, err
	}
	return tables, json.Unmarshal(text, &tables)
}

// shownName is the name of a table that a caller has made up, for people.
func shownName(name string) string {
	return strings.Map(func(c rune) rune {
		if c == '.' || c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
			return c
		}
		return '…'
	}, name)
}

// legacyKey finds the key as the legacy host does: a header's first.
func legacyKey(r *http.Request) (via, key string) {
	if key = strings.TrimSpace(r.Header.Get("X-TD-Write-Key")); key != "" {
		return "X-TD-Write-Key", key
	}
	for _, via = range []string{"td_write_key", "api_key"} {
		if key = strings.TrimSpace(r.URL.Query().Get(via)); key != "" {
			return via, key
		}
	}
	return "", ""
}

// allowOrigin lets pages read the answer.
func allowOrigin(h http.Header, r *http.Request) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Credentials", "true")
	h.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "content-type, x-td-write-key, x-td-fetch-api, x-td-data-type")
}

// refuse answers a request that it does not take.
func (l *Legacy) refuse(w http.ResponseWriter, r *http.Request, status int, message string) {
	line, said := "refused", message
	if path := legacyPath.FindStringSubmatch(r.URL.Path); path != nil {
		line += " " + path[2] + "." + path[3]
	}
	if status != 0 {
		said = fmt.Sprintf("%d %s", status, message)
	}
	l.print(line + "  by the legacy host  " + said)
	turnDown(w, r, status, message)
}

func (l *Legacy) print(line string) { printLine(&l.mu, l.Out, line) }
