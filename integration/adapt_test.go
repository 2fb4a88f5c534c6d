package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestAdapt adapts every Caddyfile in testdata/adapt. Below the line stands the
// handler's JSON, or that of the whole configuration, or the texts that the
// error must hold. Durations in the JSON may be strings such as "5s".
func TestAdapt(t *testing.T) {
	t.Parallel()
	for name, file := range goldenFiles(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			caddyfile, want := file.caddyfile, file.want
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
			var got, wanted any
			if err := json.Unmarshal([]byte(output[strings.Index(output, "\n{")+1:]), &got); err != nil {
				t.Fatalf("%v in %s", err, output)
			}
			if err := json.Unmarshal([]byte(want), &wanted); err != nil {
				t.Fatal(err)
			}
			wanted = inNanoseconds(wanted)
			if object, ok := wanted.(map[string]any); ok && object["handler"] != nil {
				got = findHandler(got)
			}
			if !reflect.DeepEqual(got, wanted) {
				t.Errorf("got %v, want %v", got, wanted)
			}
		})
	}
}

// golden is a file in testdata/adapt: what stands above the line of dashes, and
// what stands below it.
type golden struct{ caddyfile, want string }

// goldenFiles reads the files in testdata/adapt.
func goldenFiles(t *testing.T) map[string]golden {
	t.Helper()
	paths, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(paths) == 0 {
		t.Fatal("no files", err)
	}
	files := make(map[string]golden, len(paths))
	for _, path := range paths {
		content, err := os.ReadFile(path) //nolint:gosec // G304: found above
		if err != nil {
			t.Fatal(err)
		}
		caddyfile, want, ok := strings.Cut(string(content), "----------\n")
		if !ok {
			t.Fatalf("%s has no line of dashes", path)
		}
		files[strings.TrimSuffix(filepath.Base(path), ".caddyfiletest")] = golden{caddyfile, want}
	}
	return files
}

// inNanoseconds replaces durations such as "5s" by what Caddy makes of them.
func inNanoseconds(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for k, v := range value {
			value[k] = inNanoseconds(v)
		}
	case []any:
		for i, v := range value {
			value[i] = inNanoseconds(v)
		}
	case string:
		if duration, err := time.ParseDuration(value); err == nil {
			return float64(duration)
		}
	}
	return value
}

// TestDocuments keeps the configurations in the documents and their golden
// files alike: every caddyfile block of a document is above the line of a
// golden file, every json block below it, and every golden file that is for a
// document is in one.
func TestDocuments(t *testing.T) {
	t.Parallel()
	unused := map[string]bool{}
	caddyfiles, jsons := map[string]string{}, map[string]string{}
	for name, file := range goldenFiles(t) {
		caddyfiles[file.caddyfile], jsons[file.want] = name, name
		if strings.HasPrefix(name, "document_") {
			unused[name] = true
		}
	}
	for _, block := range documentBlocks(t) {
		switch block.language {
		case "caddyfile":
			name, ok := caddyfiles[block.text]
			if !ok {
				t.Errorf("%s: no file in testdata/adapt has this block above its line:\n%s", block.place, block.text)
			}
			delete(unused, name)
		case "json":
			if jsons[block.text] == "" {
				t.Errorf("%s: no file in testdata/adapt has this block below its line:\n%s", block.place, block.text)
			}
		case "":
			t.Errorf("%s: the block does not say its language, such as sh, caddyfile, json or text", block.place)
		}
	}
	for name := range unused {
		t.Errorf("the Caddyfile of testdata/adapt/%s.caddyfiletest is in no document", name)
	}
}

// block is a fenced block of a document.
type block struct{ place, language, text string }

// documentBlocks reads the fenced blocks of all documents.
func documentBlocks(t *testing.T) []block {
	t.Helper()
	var blocks []block
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../bench/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatal("no documents at", pattern, err)
		}
		for _, path := range paths {
			content, err := os.ReadFile(path) //nolint:gosec // G304: found above
			if err != nil {
				t.Fatal(err)
			}
			blocks = append(blocks, fencedBlocks(path, string(content))...)
		}
	}
	return blocks
}

// fencedBlocks finds the blocks between lines of three backquotes.
func fencedBlocks(path, document string) []block {
	var blocks []block
	inside := false
	number := 0
	for line := range strings.Lines(document) {
		number++
		language, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && !inside:
			blocks = append(blocks, block{place: path + ":" + strconv.Itoa(number), language: language})
			inside = true
		case fence:
			inside = false
		case inside:
			blocks[len(blocks)-1].text += line
		}
	}
	return blocks
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
	t.Parallel()
	load := func(handler string) (string, int) {
		config := `{"apps":{"http":{"servers":{"s":{"listen":["127.0.0.1:0"],"routes":[{"handle":[` + handler + `]}]}}}}}`
		return run(t, "validate", "--config", write(t, "caddy.json", config))
	}
	if output, code := load(`{"handler":"td_postback","region":"us01","max_body":1000,"redirect_hosts":["x.example"],"global_id":"g","dial_timeout":"1s","response_timeout":"2s","max_conns":1,"max_buffered":5242880,"retries":0,"surfaces":["js","postback"],"pass_thru":true,"keys":{"accounts":["1234"],"file":"` + write(t, "keys", "1234/0123abcd the shop\n") + `","databases":["shop*"],"unknown":"warn"},"spool":{"mode":"always","dir":"` + t.TempDir() + `","max_size":1048576,"max_age":"1h","drain_rate":1,"bytes_rate":1,"batch":500,"batch_wait":"1m"}}`); code != 0 {
		t.Errorf("exit %d: %s", code, output)
	}
	for handler, text := range map[string]string{
		`{"handler":"td_postback"}`:                                                      "region is not set",
		`{"handler":"td_postback","region":"us01","max_body":1048065}`:                   "max_body 1048065",
		`{"handler":"td_postback","region":"us01","max_body":-1}`:                        "max_body -1",
		`{"handler":"td_postback","region":"us01","dial_timeout":-1}`:                    "dial_timeout -1ns",
		`{"handler":"td_postback","region":"us01","response_timeout":-1}`:                "response_timeout -1ns",
		`{"handler":"td_postback","region":"us01","max_conns":-1}`:                       "max_conns -1",
		`{"handler":"td_postback","region":"us01","retries":11}`:                         "retries 11",
		`{"handler":"td_postback","region":"us01","retries":-1}`:                         "retries -1",
		`{"handler":"td_postback","region":"us01","max_buffered":1}`:                     "max_buffered 1",
		`{"handler":"td_postback","region":"us01","handoff":true,"tls_ca":["x"]}`:        "tls_ca",
		`{"handler":"td_postback","region":"us01","unknown":1}`:                          "unknown",
		`{"handler":"td_postback","region":"us01","redirect_hosts":["a.example","/"]}`:   `redirect_hosts "/"`,
		`{"handler":"td_postback","region":"us01","spool":{"mode":"never"}}`:             `spool mode "never"`,
		`{"handler":"td_postback","region":"us01","spool":{"max_age":-1}}`:               "spool max_age -1ns",
		`{"handler":"td_postback","region":"us01","spool":{"max_age":"169h"}}`:           "spool max_age 169h: must be",
		`{"handler":"td_postback","region":"us01","spool":{"max_age":"8d"}}`:             "spool max_age 8d: must be more than 0 and at most 7d",
		`{"handler":"td_postback","region":"us01","spool":{"max_age":"8 days"}}`:         "spool max_age: must be a duration such as 5s or 6d",
		`{"handler":"td_postback","region":"us01","max_body":"1MB"}`:                     "max_body: must be a whole number of bytes, such as 524288, not a string",
		`{"handler":"td_postback","region":"us01","redirect_hosts":"a.example"}`:         "redirect_hosts: must be an array of strings, not a string",
		`{"handler":"td_postback","region":"us01","retries":1.5}`:                        "retries: must be a whole number, not 1.5",
		`{"handler":"td_postback","region":"us01","spool":true}`:                         "spool must be an object with options",
		`{"handler":"td_postback","region":"us01","redirect_hosts":["a.example",1]}`:     "redirect_hosts: must be an array of strings, not a number",
		`{"handler":"td_postback","region":"us01","spool":{"max_size":[]}}`:              "spool max_size: must be a whole number of bytes, such as 524288, not an array",
		`{"handler":"td_postback","region":"us01","surfaces":["js","ios"]}`:              `surfaces "ios": must be some of postback, js, mobile`,
		`{"handler":"td_postback","region":"us01","surfaces":"js"}`:                      "surfaces: must be an array of strings, not a string",
		`{"handler":"td_postback","region":"us01","handoff":true,"surfaces":["mobile"]}`: `surfaces "mobile": with handoff it must be postback`,
		`{"handler":"td_postback","region":["us01"]}`:                                    "region: must be a string, not an array",
		`{"handler":"td_postback","region":"us-east-1"}`:                                 "or auto (did you mean us01?)",
		`{"handler":"td_postback","region":"us01","max_body":524288.5}`:                  "max_body: must be a whole number of bytes, such as 524288, not 524288.5",
		`{"handler":"td_postback","regoin":"us01"}`:                                      "regoin is no option of td_postback (did you mean region?)",
		`{"handler":"td_postback","region":"us01","mode":"always"}`:                      "mode is no option of td_postback: mode is an option of spool",
		`{"handler":"td_postback","region":"us01","spool":{"dirr":"/x"}}`:                "dirr is no option of spool (did you mean dir?)",
		`{"handler":"td_postback","region":"seoul"}`:                                     `region "seoul": must be one of ap01, ap02, ap03, eu01, us01 or auto (did you mean ap02?)`,
		`{"handler":"td_postback","region":"us01","spool":{"max_size":-1}}`:              "spool max_size -1",
		`{"handler":"td_postback","region":"us01","spool":{"drain_rate":-1}}`:            "spool drain_rate -1",
		`{"handler":"td_postback","region":"us01","spool":{"bytes_rate":-1}}`:            "spool bytes_rate -1",
		`{"handler":"td_postback","region":"us01","spool":{"batch":-1}}`:                 "spool batch -1: must be between 1 and 500, as many records as v2 takes in one request, or be left out for no batches",
		`{"handler":"td_postback","region":"us01","spool":{"batch":501}}`:                "spool batch 501: must be between 1 and 500",
		`{"handler":"td_postback","region":"us01","spool":{"batch":"on"}}`:               "spool batch: must be a whole number, not a string",
		`{"handler":"td_postback","region":"us01","spool":{"batch":9,"batch_wait":-1}}`:  "spool batch_wait -1ns: must be more than 0 and at most 1m",
		`{"handler":"td_postback","region":"us01","spool":{"batch_wait":"1s"}}`:          "spool batch_wait 1s: no record waits for others without batch: set batch too",
		`{"handler":"td_postback","region":"us01","spool":{"unknown":1}}`:                "unknown",
		`{"handler":"td_postback","region":"us01","spool":{"nats":["x"]}}`:               `spool nats "x"`,
		`{"handler":"td_postback","region":"us01","handoff":true,"spool":{}}`:            "spool",
		`{"handler":"td_postback","region":"us01","keys":{}}`:                            "keys has neither accounts nor file nor databases",
		`{"handler":"td_postback","region":"us01","keys":[]}`:                            "keys must be an object with options",
		`{"handler":"td_postback","region":"us01","keys":{"accounts":[1234]}}`:           "keys accounts: must be an array of strings, not a number",
		`{"handler":"td_postback","region":"us01","keys":{"unknown":true}}`:              "keys unknown: must be a string, not a bool",
		`{"handler":"td_postback","region":"us01","keys":{"file":"/none"}}`:              `keys file "/none": must be a readable file`,
		`{"handler":"td_postback","region":"us01","report":[]}`:                          "report must be an object with options",
		`{"handler":"td_postback","region":"us01","report":{"rows":"many"}}`:             "report rows: must be a whole number, not a string",
		`{"handler":"td_postback","region":"us01","report":{"rows":1}}`:                  "report rows 1: must be between 100 and 100000",
		`{"handler":"td_postback","region":"us01","report":{"networks":"off"}}`:          `report networks "off": must be cidr or none`,
		`{"handler":"td_postback","region":"us01","report":{"row":100}}`:                 "row is no option of report (did you mean rows?)",
		`{"handler":"td_postback","region":"us01","accounts":["1234"]}`:                  "accounts is no option of td_postback: accounts is an option of keys",
	} {
		output, code := load(handler)
		if code == 0 || !strings.Contains(strings.ReplaceAll(output, `\"`, `"`), text) {
			t.Errorf("%s: exit %d: %s", handler, code, output)
		}
	}
}
