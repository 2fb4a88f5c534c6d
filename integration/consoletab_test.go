package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// This file drives Chromium, for the tests of the console.

// startChromium starts a browser for tabs. These names lead to this machine, as they would
// after somebody has changed a name in DNS.
func startChromium(t *testing.T, names ...string) context.Context {
	t.Helper()
	rules := make([]string, 0, len(names))
	for _, name := range names {
		rules = append(rules, "MAP "+name+" 127.0.0.1")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(tool(t, "chromium", "chromium", "chromium-browser", "google-chrome")), chromedp.NoSandbox,
		chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-component-update", true), chromedp.Flag("host-resolver-rules", strings.Join(rules, ", ")))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	browser, closeBrowser := chromedp.NewContext(allocator)
	t.Cleanup(closeBrowser)
	if err := chromedp.Do(browser); err != nil {
		t.Fatal(err)
	}
	return browser
}

// tab is a tab of a browser. It notes what its pages complain of, and which hosts they
// ask.
type tab struct {
	ctx context.Context //nolint:containedctx // chromedp's way of naming a tab

	mu       sync.Mutex
	problems []string
	asked    []string
}

func openTab(t *testing.T, browser context.Context) *tab {
	t.Helper()
	b := new(tab)
	ctx, closeTab := chromedp.NewContext(browser, chromedp.WithListener(b.note))
	t.Cleanup(closeTab)
	b.ctx, closeTab = context.WithTimeout(ctx, 2*patience)
	t.Cleanup(closeTab)
	b.do(t, chromedp.EmulateViewport(1280, 800))
	return b
}

func (b *tab) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch event := event.(type) {
	case *log.EventEntryAdded:
		if event.Entry.Level == log.EntryLevelError || event.Entry.Level == log.EntryLevelWarning {
			b.problems = append(b.problems, event.Entry.Text+" "+event.Entry.URL)
		}
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, event.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		b.problems = append(b.problems, "console."+string(event.Type))
	case *network.EventRequestWillBeSent:
		b.asked = append(b.asked, event.Request.URL)
	}
}

// checkQuiet fails the test if a page has complained, or has asked another host.
func (b *tab) checkQuiet(t *testing.T, addr string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.problems) > 0 {
		t.Errorf("%s: %q", addr, b.problems)
	}
	if i := slices.IndexFunc(b.asked, func(url string) bool { return !strings.HasPrefix(url, "http://"+addr+"/") }); i >= 0 || len(b.asked) == 0 {
		t.Errorf("%s: it asks %q", addr, b.asked)
	}
}

func (b *tab) do(t *testing.T, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

func (b *tab) open(t *testing.T, url string) {
	t.Helper()
	b.do(t, chromedp.Navigate(url))
}

// value is what an expression of JavaScript is worth, once its promise is kept.
func value[T any](t *testing.T, b *tab, expression string) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// prefers says how somebody likes pages: feature and value, in turn.
func (b *tab) prefers(t *testing.T, pairs ...string) {
	t.Helper()
	var features []*emulation.MediaFeature
	for pair := range slices.Chunk(pairs, 2) {
		features = append(features, &emulation.MediaFeature{Name: pair[0], Value: pair[1]})
	}
	b.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features})
		return err
	}))
}

// shoot takes a picture of a whole page of this width, or of its upper part, and keeps it
// in the test's directory of artifacts. Nothing may be wider than the page.
func (b *tab) shoot(t *testing.T, name string, width, height int64) []byte {
	t.Helper()
	b.do(t, chromedp.EmulateViewport(width, 800))
	if wide := value[int64](t, b, "document.documentElement.scrollWidth"); wide > width {
		t.Errorf("%s: %d of %d pixels", name, wide, width)
	}
	if height == 0 {
		height = min(8000, value[int64](t, b, "document.documentElement.scrollHeight"))
	}
	b.do(t, chromedp.EmulateViewport(width, height))
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%d.png", name, width)), picture, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return picture
}
