package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/spool"
)

const (
	testWait   = 30 * time.Second
	testSecret = "c0ffee5ec2e7"
	testEvent  = "/postback/v3/event/db/tbl"
)

// fakeV2 answers every record with the same status.
type fakeV2 struct {
	*httptest.Server
	status atomic.Int32
	taken  atomic.Int32 // records that it has answered with 200
}

func newFakeV2(t *testing.T, status int32) *fakeV2 {
	t.Helper()
	v2 := &fakeV2{}
	v2.status.Store(status)
	v2.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status := int(v2.status.Load())
		if status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "3600")
		}
		if status == http.StatusOK {
			v2.taken.Add(1)
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(v2.Close)
	return v2
}

// spooling is a gateway in this process, with a spool. There is one at a time:
// Caddy's configuration is the process's.
type spooling struct {
	dir    string
	loads  int    // configurations so far
	socket string // of the last one
	client *http.Client
}

func newSpooling(t *testing.T) *spooling {
	t.Helper()
	g := &spooling{dir: filepath.Join(t.TempDir(), "spool")}
	g.client = &http.Client{Timeout: testWait, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", g.socket)
		},
	}}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// handler is a handler with a spool; options are the spool's, in JSON, as
// `"drain_rate":7`.
func (g *spooling) handler(upstream string, options ...string) string {
	options = append(options, fmt.Sprintf(`"dir":%q`, g.dir))
	return fmt.Sprintf(`{"handler":"td_postback","upstream":%q,"retries":0,"spool":{%s}}`, upstream, strings.Join(options, ","))
}

// nextSocket is where the next configuration listens. Each has its own: Caddy
// closes the servers of the last one in the background, and connections that
// they have accepted.
func (g *spooling) nextSocket() string { return fmt.Sprintf("%s.http%d", g.dir, g.loads+1) }

// config is a configuration with these handlers, one after the other.
func (g *spooling) config(handlers ...string) []byte {
	return fmt.Appendf(nil, `{
		"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
		"apps": {
			"tls": {"disable_storage_check": true, "disable_storage_clean": true},
			"http": {"servers": {"test": {
				"listen": [%q], "automatic_https": {"disable": true},
				"routes": [{"handle": [%s]}]
			}}}
		}
	}`, "unix/"+g.nextSocket(), strings.Join(handlers, ","))
}

func (g *spooling) load(t *testing.T, handlers ...string) {
	t.Helper()
	if err := caddy.Load(g.config(handlers...), true); err != nil {
		t.Fatal(err)
	}
	g.socket = g.nextSocket()
	g.loads++
}

// post sends a record, and returns the status of the answer.
func (g *spooling) post(t *testing.T, body string) int {
	t.Helper()
	return g.postTo(t, testEvent+"?td_write_key=1234/"+testSecret, body)
}

func (g *spooling) postTo(t *testing.T, target, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://gateway"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// eventually waits for something that must happen.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(testWait); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// onlySpool is the spool that is open.
func onlySpool(t *testing.T) spool.Status {
	t.Helper()
	open := openSpools()
	if len(open) != 1 {
		t.Fatalf("%d spools are open", len(open))
	}
	return open[0].Status()
}

// validate checks a configuration, as "caddy validate" does.
func validate(t *testing.T, config []byte) error {
	t.Helper()
	var cfg *caddy.Config
	if err := json.Unmarshal(config, &cfg); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(cfg)
}

// TestValidateTouchesNothing checks configurations while a gateway runs, and
// without one.
func TestValidateTouchesNothing(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	if err := validate(t, g.config(g.handler(v2.URL))); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(g.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it has made %s: %v", g.dir, err)
	}

	g.load(t, g.handler(v2.URL, `"max_size":10485760`))
	if status := g.post(t, `{"a":1}`); status != http.StatusOK {
		t.Fatalf("got %d", status)
	}
	if err := validate(t, g.config(g.handler(v2.URL, `"max_size":20971520`))); err != nil {
		t.Error(err)
	}
	if status := onlySpool(t); status.MaxBytes != 10485760 || len(status.Queues) != 1 || status.Queues[0].Records != 1 {
		t.Errorf("got %+v", status)
	}
}

// TestValidateRefuses checks options that do not go together, and those that do
// not go with a spool that is open.
func TestValidateRefuses(t *testing.T) {
	g := newSpooling(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("ab", spool.KeySize)), 0o600); err != nil {
		t.Fatal(err)
	}
	const v2 = "http://127.0.0.1:1"
	encrypted := fmt.Sprintf(`"key_file":%q`, key)
	for want, handlers := range map[string][]string{
		"another td_postback block has other options":   {g.handler(v2), g.handler(v2, `"max_size":20971520`)},
		"other options for it: give both the same":      {g.handler(v2), g.handler(v2, `"drain_rate":7`)},
		"give both the same, or each a dir of its own":  {g.handler(v2), g.handler(v2, encrypted)},
		"another td_postback block has other options ":  {g.handler(v2, `"batch":500`), g.handler(v2)},
		"has other options for it: give both the same":  {g.handler(v2, `"batch":500`), g.handler(v2, `"batch":500`, `"batch_wait":"1s"`)},
		"spool max_size 5: must be at least":            {g.handler(v2, `"max_size":5`)},
		"spool key_file":                                {g.handler(v2, `"key_file":"/nonexistent"`)},
		`spool nats "ftp://a.example": must be nats://`: {`{"handler":"td_postback","upstream":"` + v2 + `","spool":{"nats":["ftp://a.example"]}}`},
		`spool nats "…@a.example:x"`:                    {`{"handler":"td_postback","upstream":"` + v2 + `","spool":{"nats":["nats://u:` + testSecret + `@a.example:x"]}}`},
	} {
		err := validate(t, g.config(handlers...))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), testSecret) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
	if err := validate(t, g.config(g.handler(v2), g.handler(v2, `"mode":"always"`))); err != nil {
		t.Errorf("another mode: %v", err)
	}
	if err := validate(t, g.config(g.handler(v2, `"batch":500`), g.handler(v2, `"batch":500`, `"batch_wait":"200ms"`))); err != nil {
		t.Errorf("the default as it is, and written out: %v", err)
	}
	g.load(t, g.handler(v2))
	if err := validate(t, g.config(g.handler(v2, encrypted))); err == nil || !strings.Contains(err.Error(), "it is open with another key_file") {
		t.Errorf("another key: %v", err)
	}
}

// looker is a module behind td_postback that looks at the spool when it is
// provisioned, and may fail the configuration then.
type looker struct {
	Fail bool `json:"fail,omitempty"`
}

var looked atomic.Pointer[spool.Status]

func init() { caddy.RegisterModule(looker{}) }

func (looker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_looker", New: func() caddy.Module { return new(looker) }}
}

func (l *looker) Provision(caddy.Context) error {
	if open := openSpools(); len(open) == 1 {
		status := open[0].Status()
		looked.Store(&status)
	}
	if l.Fail {
		return errors.New("as the test wants it")
	}
	return nil
}

func (*looker) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(w, r)
}

// TestFailedLoadChangesNothing loads configurations that fail after their spool
// was provisioned: what runs keeps its size and its records, and one without a
// spool gets none.
func TestFailedLoadChangesNothing(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	fails := []string{g.handler(v2.URL, `"max_size":20971520`, `"mode":"always"`), `{"handler":"test_looker","fail":true}`}

	g.load(t, `{"handler":"td_postback","region":"us01"}`)
	if err := caddy.Load(g.config(fails...), true); err == nil || !strings.Contains(err.Error(), "as the test wants it") {
		t.Fatal(err)
	}
	if _, err := os.Stat(g.dir); !errors.Is(err, os.ErrNotExist) || len(openSpools()) != 0 {
		t.Errorf("%d spools, %s: %v", len(openSpools()), g.dir, err)
	}

	g.load(t, g.handler(v2.URL, `"max_size":10485760`))
	looked.Store(nil)
	if err := caddy.Load(g.config(fails...), true); err == nil {
		t.Fatal("it was loaded")
	}
	if during := looked.Load(); during == nil || during.MaxBytes != 10485760 {
		t.Errorf("while it was loaded: %+v", during)
	}
	if after := onlySpool(t); after.MaxBytes != 10485760 || !after.Available {
		t.Errorf("after: %+v", after)
	}
	if status := g.post(t, `{"a":1}`); status != http.StatusOK {
		t.Errorf("got %d", status)
	}

	// One that is good changes the size, and delivers what is there.
	v2.status.Store(http.StatusOK)
	next := newFakeV2(t, http.StatusOK)
	g.load(t, g.handler(next.URL, `"max_size":20971520`, `"mode":"always"`), `{"handler":"test_looker"}`)
	if after := onlySpool(t); after.MaxBytes != 20971520 {
		t.Errorf("after a good one: %+v", after)
	}
	if status := g.post(t, `{"a":2}`); status != http.StatusOK {
		t.Errorf("got %d", status)
	}
	eventually(t, "the new v2 gets its record", func() bool { return next.taken.Load() == 1 })

	g.load(t, `{"handler":"td_postback","region":"us01"}`)
	if n := len(openSpools()); n != 0 {
		t.Errorf("%d spools are open, and none is configured", n)
	}
}

// TestStartRefusesWhatIsLocked loads a spool that another Log has open.
func TestStartRefusesWhatIsLocked(t *testing.T) {
	v2 := newFakeV2(t, http.StatusOK)
	g := newSpooling(t)
	options := &Spool{Dir: g.dir}
	options.applyDefaults()
	other := options.shared(g.dir, nil)
	if err := other.Open(); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(g.config(g.handler(v2.URL)), true); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("while it is locked: %v", err)
	}
	if err := other.Destruct(); err != nil {
		t.Fatal(err)
	}
	g.load(t, g.handler(v2.URL))
	if status := onlySpool(t); !status.Available {
		t.Errorf("got %+v", status)
	}
}

// TestAdviceOnADisk: the advice is about what is wrong. Only a full disk is to be freed.
func TestAdviceOnADisk(t *testing.T) {
	for errno, says := range map[syscall.Errno]string{
		syscall.ENOSPC: "free space", syscall.EDQUOT: "free space",
		syscall.EACCES: "right to write", syscall.EPERM: "right to write", syscall.EROFS: "mounted read-only",
		syscall.ENOENT: "see that dir is a directory", syscall.ENOTDIR: "see that dir is a directory",
		syscall.EFBIG: "ulimit -f", syscall.EMFILE: "LimitNOFILE", syscall.ENFILE: "LimitNOFILE",
		syscall.EIO: "the disk is failing", syscall.EINVAL: "by what the error says",
	} {
		path := &fs.PathError{Op: "open", Path: "/spool/queue", Err: errno}
		for _, err := range []error{path, fmt.Errorf("%w: %w", spool.ErrUnavailable, path), errors.New(path.Error())} { // bbolt keeps only the text of some
			advice := adviceOn(spool.Event{Kind: spool.Failed, Err: err})
			if !strings.Contains(advice, says) || strings.Contains(advice, "free space") != (says == "free space") {
				t.Errorf("%v: %s", err, advice)
			}
		}
	}
}
