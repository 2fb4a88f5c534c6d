package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestAdapt adapts every Caddyfile in testdata/adapt. Below the line stands
// either the handler's JSON, or the texts that the error must hold.
func TestAdapt(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			t.Parallel()
			content, err := os.ReadFile(file) //nolint:gosec // G304: found above
			if err != nil {
				t.Fatal(err)
			}
			caddyfile, want, ok := strings.Cut(string(content), "----------\n")
			if !ok {
				t.Fatal("no line of dashes")
			}
			path := write(t, "Caddyfile", caddyfile)
			if !strings.HasPrefix(want, "{") {
				output, code := run(t, "validate", "--adapter", "caddyfile", "--config", path)
				if code == 0 {
					t.Error("no error")
				}
				output = strings.ReplaceAll(output, `\"`, `"`)
				for text := range strings.SplitSeq(strings.TrimSpace(want), "\n") {
					if !strings.Contains(output, text) {
						t.Errorf("%q is not in\n%s", text, output)
					}
				}
				if strings.Contains(output, "secret") {
					t.Errorf("a password is in\n%s", output)
				}
				return
			}
			output, code := run(t, "adapt", "--adapter", "caddyfile", "--config", path)
			if code != 0 {
				t.Fatalf("exit %d: %s", code, output)
			}
			var adapted, handler any
			if err := json.Unmarshal([]byte(output[strings.Index(output, "\n{")+1:]), &adapted); err != nil {
				t.Fatalf("%v in %s", err, output)
			}
			if err := json.Unmarshal([]byte(want), &handler); err != nil {
				t.Fatal(err)
			}
			if got := findHandler(adapted); !reflect.DeepEqual(got, handler) {
				t.Errorf("got %v, want %v", got, handler)
			}
		})
	}
}

// findHandler finds the td_postback handler in a configuration.
func findHandler(config any) any {
	switch value := config.(type) {
	case map[string]any:
		if value["handler"] == "td_postback" {
			return value
		}
		for _, v := range value {
			if found := findHandler(v); found != nil {
				return found
			}
		}
	case []any:
		for _, v := range value {
			if found := findHandler(v); found != nil {
				return found
			}
		}
	}
	return nil
}

// TestJSON loads a configuration in JSON: every option has the same name
// there, and wrong values fail alike.
func TestJSON(t *testing.T) {
	load := func(handler string) (string, int) {
		config := `{"apps":{"http":{"servers":{"s":{"listen":["127.0.0.1:0"],"routes":[{"handle":[` + handler + `]}]}}}}}`
		return run(t, "validate", "--config", write(t, "caddy.json", config))
	}
	if output, code := load(`{"handler":"td_postback","region":"us01","max_body":1000,"redirect_hosts":["x.example"],"global_id":"g","dial_timeout":"1s","response_timeout":"2s","max_conns":1,"max_buffered":1048576,"retries":0,"pass_thru":true,"spool":{"mode":"always","dir":"` + t.TempDir() + `","max_size":1048576,"max_age":"1h","drain_rate":1}}`); code != 0 {
		t.Errorf("exit %d: %s", code, output)
	}
	for handler, text := range map[string]string{
		`{"handler":"td_postback"}`:                                                    "region is not set",
		`{"handler":"td_postback","region":"us01","max_body":1048065}`:                 "max_body 1048065",
		`{"handler":"td_postback","region":"us01","max_body":-1}`:                      "max_body -1",
		`{"handler":"td_postback","region":"us01","dial_timeout":-1}`:                  "dial_timeout -1ns",
		`{"handler":"td_postback","region":"us01","response_timeout":-1}`:              "response_timeout -1ns",
		`{"handler":"td_postback","region":"us01","max_conns":-1}`:                     "max_conns -1",
		`{"handler":"td_postback","region":"us01","retries":11}`:                       "retries 11",
		`{"handler":"td_postback","region":"us01","retries":-1}`:                       "retries -1",
		`{"handler":"td_postback","region":"us01","max_buffered":1}`:                   "max_buffered 1",
		`{"handler":"td_postback","region":"us01","handoff":true,"tls_ca":["x"]}`:      "tls_ca",
		`{"handler":"td_postback","region":"us01","unknown":1}`:                        "unknown",
		`{"handler":"td_postback","region":"us01","redirect_hosts":["a.example","/"]}`: `redirect_hosts "/"`,
		`{"handler":"td_postback","region":"us01","spool":{"mode":"never"}}`:           `spool mode "never"`,
		`{"handler":"td_postback","region":"us01","spool":{"max_age":-1}}`:             "spool max_age -1ns",
		`{"handler":"td_postback","region":"us01","spool":{"max_age":"169h"}}`:         "spool max_age 169h0m0s",
		`{"handler":"td_postback","region":"us01","spool":{"max_size":-1}}`:            "spool max_size -1",
		`{"handler":"td_postback","region":"us01","spool":{"drain_rate":-1}}`:          "spool drain_rate -1",
		`{"handler":"td_postback","region":"us01","spool":{"unknown":1}}`:              "unknown",
		`{"handler":"td_postback","region":"us01","spool":{"nats":["x"]}}`:             `spool nats "x"`,
		`{"handler":"td_postback","region":"us01","handoff":true,"spool":{}}`:          "spool",
	} {
		output, code := load(handler)
		if code == 0 || !strings.Contains(strings.ReplaceAll(output, `\"`, `"`), text) {
			t.Errorf("%s: exit %d: %s", handler, code, output)
		}
	}
}
