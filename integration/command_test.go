package integration

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestListModules(t *testing.T) {
	t.Parallel()
	output, code := run(t, "list-modules")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, output)
	}
	var own []string
	for line := range strings.SplitSeq(output, "\n") {
		if strings.Contains(line, "td_") {
			own = append(own, line)
		}
	}
	if !slices.Equal(own, []string{
		"admin.api.td_postback", "caddy.listeners.td_handover", "caddy.logging.encoders.filter.td_key", "http.handlers.td_console", "http.handlers.td_postback", "http.matchers.td_call", "td_postback",
	}) {
		t.Errorf("listed: %q", own)
	}
}

func TestCommandHelp(t *testing.T) {
	t.Parallel()
	output, code := run(t, "td-postback", "--help")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, output)
	}
	for _, text := range []string{
		"--listen", "--region", "--upstream", "--sandbox", "--spool", "--access-log", "--max-body", "--redirect-hosts",
		"caddy td-postback --sandbox", "curl ",
	} {
		if !strings.Contains(output, text) {
			t.Errorf("the help does not mention %s", text)
		}
	}
}

// TestSandboxCommand is README's first command.
func TestSandboxCommand(t *testing.T) {
	t.Parallel()
	g := command(t, "--sandbox", "--access-log")
	resp, err := http.Post(g.url("/postback/v3/event/mydb/mytable?td_write_key=1234/abcdef"),
		"application/x-www-form-urlencoded", strings.NewReader(`{"user":"alice"}`))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || string(body) != "{}" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %d %q %q", resp.StatusCode, body, resp.Header.Get("Content-Type"))
	}
	g.await(t, `record mydb.mytable  key 1234/… via X-TD-Write-Key  {"user":"alice"}`, 1)
	for table, status := range map[string]int{"answer_400": 400, "answer_403": 403, "answer_422": 422, "answer_429": 429, "answer_503": 503} {
		answer := raw(t, g.addr, post("/postback/v3/event/mydb/"+table+"?td_write_key=1234/abcdef", asJSON, object))
		if answer.StatusCode != status || (answer.Header.Get("Retry-After") != "") != (status == 429) {
			t.Errorf("%s: got %d %v", table, answer.StatusCode, answer.Header)
		}
		g.await(t, fmt.Sprintf("refused mydb.%s  key 1234/… via X-TD-Write-Key  %d ", table, status), 1)
	}
	raw(t, g.addr, post("/postback/v3/event/mydb/mytable?td_write_key=1234/abcdef", asJSON, `[1]`))
	g.await(t, "refused mydb.mytable  key 1234/… via X-TD-Write-Key  400 the body must be one JSON object", 1)
	raw(t, g.addr, post("/postback/v3/event/mydb/mytable", asJSON, object))
	raw(t, g.addr, post("/postback/v3/event/my-db/mytable?td_write_key=1234/abcdef", asJSON, object))
	g.await(t, "refused  by the gateway  400 invalid_path: ", 1)
	g.await(t, "refused mydb.mytable  by the gateway  403 missing_write_key: send the write key", 1)
	if answer := raw(t, g.addr, post("/elsewhere", asJSON, object)); answer.StatusCode != 404 || answer.code() != "not_found" {
		t.Errorf("elsewhere: got %d %q", answer.StatusCode, answer.body)
	}
	if answer := raw(t, g.addr, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); answer.StatusCode != 404 {
		t.Errorf("root: got %d, no redirect and no 200 is right", answer.StatusCode)
	}
	sandboxBatch(t, g)
	long := "/postback/v3/event/mydb/long?x=" + strings.Repeat("x", 900_000) + "&td_write_key=1234/abcdef"
	if answer := raw(t, g.addr, post(long, asJSON, `{"n":1}`)); answer.StatusCode != 431 && answer.StatusCode != 200 {
		t.Errorf("a URL of 900 kB: got %d", answer.StatusCode)
	} else if answer.StatusCode == 431 && !strings.Contains(g.text(), "record mydb.long") {
		t.Error("a URL of 900 kB was refused by the gateway")
	}
	g.await(t, "handled request", 15)
	if text := g.text(); strings.Contains(text, "abcdef") {
		t.Errorf("the output holds the key:\n%s", text)
	}
}

// sandboxBatch sends batches to the sandbox, as a gateway does of which it is the
// upstream.
func sandboxBatch(t *testing.T, g *gateway) {
	const v1 = "application/vnd.treasuredata.v1+json"
	headers := "Authorization: TD1 1234/abcdef\r\nContent-Type: " + v1 + "\r\nAccept: " + v1 + "\r\n"
	batch := `{"events":[{"n":1,"uuid":"08289530-0000-4000-8000-00000000000a"},{"n":2,"refused":true}]}`
	for range 2 {
		answer := raw(t, g.addr, post("/mydb/batched", headers, batch))
		if answer.StatusCode != 200 || strings.Count(answer.body, `"success":true`) != 2 {
			t.Errorf("a batch: got %d %q", answer.StatusCode, answer.body)
		}
	}
	g.await(t, `record mydb.batched  key 1234/… via Authorization, by batch  {"n":2,"refused":true}`, 2)
	g.await(t, `record mydb.batched  key 1234/… via Authorization, by batch  {"n":1}`, 1)
	if strings.Count(g.text(), `{"n":1}`) != 1 {
		t.Error("a repeat with the same uuid is printed")
	}
	answer := raw(t, g.addr, post("/mydb/answer_206", headers, batch))
	if answer.StatusCode != 206 || strings.Count(answer.body, `"success":true`) != 1 {
		t.Errorf("answer_206: got %d %q", answer.StatusCode, answer.body)
	}
	g.await(t, "refused mydb.answer_206  key 1234/… via Authorization, by batch  206 ", 1)
	if answer := raw(t, g.addr, post("/mydb/batched", asJSON, object)); answer.StatusCode != 404 || answer.code() != "not_found" {
		t.Errorf("what is no batch: got %d %q", answer.StatusCode, answer.body)
	}
}

// TestSandboxTakesBatches is the sandbox as the upstream of a gateway whose spool has
// batches, as docs/spool.md has it.
func TestSandboxTakesBatches(t *testing.T) {
	t.Parallel()
	stand := command(t, "--sandbox")
	g := serveSpool(t, stand.url(""), "", always)
	saysNoSecret(t, stand.process)
	const printed = "key 1234/… via Authorization, by batch  "
	target := func(table string) string { return strings.Replace(spoolTarget, "/tbl", "/"+table, 1) }
	for _, table := range []string{"one", "answer_206", "answer_422"} {
		isTaken(t, raw(t, g.addr, post(target(table), asJSON, `{"time":`+minuteAgo+`}`)))
	}
	isTaken(t, raw(t, g.addr, post(target("answer_206"), asJSON, `{"refused":1}`)))
	isTaken(t, raw(t, g.addr, post(target("alone"), asJSON, `{"uuid":1}`)))
	for table, line := range map[string]string{
		"one":        "record db.one  " + printed + `{"time":` + minuteAgo + "}\n",
		"answer_206": "record db.answer_206  " + printed + `{"time":` + minuteAgo + "}\n",
		"failing":    "refused db.answer_206  " + printed + "206 a record with a member refused",
		"answer_422": "refused db.answer_422  " + printed + "422 this table takes no record",
		"alone":      `record db.alone  key 1234/… via X-TD-Write-Key  {"uuid":1,"td_record_time":`,
	} {
		stand.await(t, line, 1)
		if strings.Count(stand.text(), line) != 1 && table != "failing" {
			t.Errorf("%s: it has printed\n%s", table, stand.text())
		}
	}
	g.awaitDead(t, "answer_422", 422, 1)
	if s := g.state(t); s.records() != 1 || s.dead() != 1 { // the failing one is tried again
		t.Errorf("got %+v", s)
	}
}

func TestCommandForwards(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := command(t, "--upstream", u.url(), "--max-body", "1KB")
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	u.next(t)
	if answer := raw(t, g.addr, post(target, asJSON, objectOf(1001))); answer.StatusCode != 413 {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	u.none(t)
	if strings.Contains(g.text(), "handled request") {
		t.Error("there is an access log without --access-log")
	}
}

func TestCommandErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		args []string
		says []string
	}{
		{nil, []string{"region", "us01", "auto"}},
		{[]string{"--region", "mars"}, []string{"region", `"mars"`, "us01"}},
		{[]string{"--upstream", "ftp://x"}, []string{"upstream", `"ftp://x"`, "http://"}},
		{[]string{"--region", "us01", "--max-body", "2MiB"}, []string{"max-body", `"2MiB"`, "1048064"}},
		{[]string{"--region", "us01", "--max-body", "x"}, []string{"max-body", `"x"`}},
		{[]string{"--region", "us01", "--redirect-hosts", "http://x.example"}, []string{"redirect_hosts", `"http://x.example"`}},
		{[]string{"--region", "us01", "--listen", "127.0.0.1"}, []string{"--listen", `"127.0.0.1"`}},
		{[]string{"--sandbox", "--region", "us01"}, []string{"--sandbox", "--region"}},
		{nil, []string{"--region", "--sandbox"}},
		{[]string{"--spool"}, []string{"--region", "--sandbox"}},
		{[]string{"--nonsense"}, []string{"--nonsense", "--help"}},
		{[]string{"--regoin", "us01"}, []string{"--regoin", "did you mean --region?"}},
		{[]string{"--sandbx"}, []string{"--sandbx", "did you mean --sandbox?"}},
		{[]string{"--region", "us01", "--spol"}, []string{"--spol", "did you mean --spool?"}},
		{[]string{"-sandbox"}, []string{"-sandbox", "did you mean --sandbox?"}},
		{[]string{"-region", "us01"}, []string{"did you mean --region us01?"}},
		{[]string{"sandbox"}, []string{`"sandbox"`, "did you mean --sandbox?"}},
		{[]string{"--sandbox", "spool"}, []string{`"spool"`, "did you mean --spool?"}},
		{[]string{"us01"}, []string{`"us01"`, "--region us01"}},
		{[]string{"--sandbox", "mars"}, []string{`"mars"`, "no argument"}},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			output, code := run(t, append([]string{"td-postback"}, tc.args...)...)
			if code != 1 {
				t.Error("exit", code)
			}
			isPlain(t, tc.args, output)
			if strings.Contains(output, "loading http app module") {
				t.Errorf("Caddy's words hide it: %s", output)
			}
			for _, text := range tc.says {
				if !strings.Contains(output, text) {
					t.Errorf("%q is not in\n%s", text, output)
				}
			}
		})
	}
}

// TestPlainErrors: each command of the gateway's says what is wrong in one line for people,
// on the standard error, and nothing else. Caddy alone has two forms: its own commands log
// an error as JSON.
func TestPlainErrors(t *testing.T) {
	t.Parallel()
	nowhere, file := freeAddr(t), write(t, "Caddyfile", "http://:80 {\n td_postback mars\n}\n")
	for _, tc := range []struct {
		args string
		says string
		code int
	}{
		{"td-postback", "region is not set", 1},
		{"td-postback --regoin us01", "did you mean --region?", 1},
		{"td-postback --region us01 --listen 127.0.0.1", "must be an address with one port", 1},
		{"td-doctor --config /nonexistent", "/nonexistent", 1},
		{"td-doctor --config " + file + " --adapter yml", "no such adapter", 1},
		{"td-doctor now", "takes no argument", 1},
		{"td-spool status --address " + nowhere, "no gateway answers there", 1},
		{"td-spool list --address " + nowhere, "no gateway answers there", 1},
		{"td-spool list --limit x", "invalid argument", 1},
		{"td-spool show 1 --address " + nowhere, "no gateway answers there", 1},
		{"td-spool show", "give one ID", 1},
		{"td-spool replay --all --address " + nowhere, "no gateway answers there", 1},
		{"td-spool drop 1 --address " + nowhere, "no gateway answers there", 1},
		{"td-spool stat", "did you mean status?", 1},
		{"td-migrate status --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate share db.tbl 5 --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate share db.tbl 5 --dry-run --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate share db.tbl 500", "the share must be a percentage", 1},
		{"td-migrate unset db.tbl --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate rollback --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate resume --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate undo --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate history --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate callers --address " + nowhere, "no gateway answers there", 1},
		{"td-migrate callers --since never", "must be a duration", 1},
		{"td-migrate audit --address " + nowhere, "no gateway answers there", 3}, // 1 is a verdict
		{"td-migrate audit --since never", "must be a duration", 3},
		{"td-migrate audit --sinc 1h", "did you mean --since?", 3},
		{"td-migrate audit 24h", "takes no argument", 3},
		{"td-migrate rollback now", "\"now\": rollback takes no argument, only flags", 1},
		{"td-migrate rollback tokyo", "\"tokyo\": rollback takes no argument, only flags", 1},
		{"td-migrate callers left", "did you mean --left?", 1},
		{"td-spool list dead", "did you mean --dead?", 1},
		{"td-migrate status --address http://localhost:2019", "such as localhost:2019", 1},
		{"td-migrate roll", "did you mean rollback?", 1},
	} {
		cmd, words := exec.Command(binary, strings.Fields(tc.args)...), new(strings.Builder)
		cmd.Env, cmd.Stderr = homeIn(t.TempDir()), words
		output, _ := cmd.Output()
		line, more, _ := strings.Cut(words.String(), "\n")
		if code := cmd.ProcessState.ExitCode(); code != tc.code || len(output) > 0 || more != "" || !strings.HasPrefix(line, "Error: ") || !strings.Contains(line, tc.says) {
			t.Errorf("%s: exit %d, it says %q and\n%s", tc.args, code, output, words)
		}
	}
}

// isPlain checks that a command that fails ends with its error as a line for people.
func isPlain(t *testing.T, args []string, output string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(output, "\n"), "\n")
	if !strings.HasPrefix(lines[len(lines)-1], "Error: ") || strings.Contains(output, `"level":"error"`) {
		t.Errorf("%q: no plain error:\n%s", args, output)
	}
}

// TestFlagErrors misspells flags of the other commands.
func TestFlagErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ args, says string }{
		{"td-spool --addresss x status", "did you mean --address?"},
		{"td-spool status --queu x", "did you mean --queue?"},
		{"td-spool list --deadd", "did you mean --dead?"},
		{"td-doctor --ofline", "did you mean --offline?"},
		{"td-doctor offline", "did you mean --offline?"},
	} {
		output, code := run(t, strings.Fields(tc.args)...)
		if code == 0 || !strings.Contains(output, tc.says) {
			t.Errorf("%s: exit %d: %s", tc.args, code, output)
		}
	}
}

// TestErrorsComeFirst has configurations that cannot be: the first line of level
// error is the gateway's own, at the start, in a check and at a reload, and begins
// with the option. Caddy's line has three hundred characters before it.
func TestErrorsComeFirst(t *testing.T) {
	t.Parallel()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	config := func(block string) string {
		return fmt.Sprintf("{\n%s\n}\nhttp://:%s {\nhandle {\nhandle {\n%s\n}\n}\n}\n", withAdmin(admin), port, block)
	}
	g := serveCaddyfile(t, addr, config("td_postback us01"))
	for block, begins := range map[string]string{
		"td_postback mars":                                           `region "mars": must be`,
		"td_postback {\n upstream ftp://x\n}":                        `upstream "ftp://x": must be`,
		"td_postback us01 {\n tls_ca /nonexistent\n}":                `tls_ca "/nonexistent": must be`,
		"td_postback us01 {\n spool {\n mode no\n}\n}":               `spool mode "no": must be`,
		"td_postback us01 {\n spool {\n key_file /nonexistent\n}\n}": `spool key_file "/nonexistent": must be`,
	} {
		first := func(output string) string {
			for line := range strings.SplitSeq(output, "\n") {
				var entry struct{ Level, Msg, Logger string }
				if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" {
					return entry.Msg
				}
			}
			return ""
		}
		path := write(t, "Caddyfile", config(block))
		for _, command := range []string{"validate", "run"} {
			output, code := run(t, command, "--adapter", "caddyfile", "--config", path)
			if msg := first(output); code == 0 || !strings.HasPrefix(msg, begins) {
				t.Errorf("%s %q: exit %d, %s", command, block, code, msg)
			}
		}
		before := len(g.text())
		if status, problem := reload(t, admin, config(block)); status != http.StatusBadRequest || !strings.Contains(strings.ReplaceAll(problem, `\"`, `"`), begins) {
			t.Errorf("reload %q: %d %s", block, status, problem)
		}
		g.await(t, strings.ReplaceAll(`"msg":"`+strings.ReplaceAll(begins, `"`, `\"`), `\\`, `\`), 1)
		if msg := first(g.text()[before:]); !strings.HasPrefix(msg, begins) {
			t.Errorf("reload %q: %s", block, msg)
		}
	}
}

// TestCommandTwice starts a second gateway where one runs: Caddy alone would let
// both have the port, and each would get some of the callers.
func TestCommandTwice(t *testing.T) {
	t.Parallel()
	g := command(t, "--sandbox")
	_, port, _ := net.SplitHostPort(g.addr)
	dir := t.TempDir()
	socket := "unix/" + dir + "/s"
	start(t, []string{"CADDY_ADMIN=" + freeAddr(t)}, "td-postback", "--sandbox", "--listen", socket).await(t, running, 1)
	for _, listen := range []string{g.addr, ":" + port, "tcp/" + g.addr, "localhost:" + port, socket, socket + "|0600"} {
		output, code := run(t, "td-postback", "--sandbox", "--listen", listen)
		if code == 0 || !strings.Contains(output, "--listen ") || !strings.Contains(output, "in use") {
			t.Errorf("%s: exit %d: %s", listen, code, output)
		}
	}
	// Both go on.
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	if conn, err := net.Dial("unix", dir+"/s"); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}

	// A socket that nobody listens on any more is in nobody's way.
	left, err := net.Listen("unix", dir+"/left")
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	start(t, []string{"CADDY_ADMIN=" + freeAddr(t)}, "td-postback", "--sandbox", "--listen", "unix/"+dir+"/left").await(t, running, 1)
}

// TestCommandSpool is a first try of the spool: v2 fails, and td-spool finds the
// gateway and what it has kept by itself.
func TestCommandSpool(t *testing.T) {
	t.Parallel()
	admin := freeAddr(t)
	env := []string{"CADDY_ADMIN=" + admin, "TMPDIR=" + t.TempDir()}
	addr := freeAddr(t)
	g := start(t, env, "td-postback", "--sandbox", "--spool", "--listen", addr)
	saysNoSecret(t, g)
	g.await(t, running, 1)
	isTaken(t, raw(t, addr, post("/postback/v3/event/mydb/answer_503?td_write_key="+spoolKey, asJSON, "{}")))
	g.await(t, "refused mydb.answer_503", 2) // once with the caller, and then from the spool

	// td-spool, without --address.
	td := func(line string, env ...string) (string, int) {
		cmd := exec.Command(binary, strings.Fields(line)...)
		cmd.Env = append([]string{"HOME=" + t.TempDir()}, env...)
		output, _ := cmd.CombinedOutput()
		return string(output), cmd.ProcessState.ExitCode()
	}
	for line, says := range map[string]string{
		"td-spool status":         "RECORDS",
		"td-spool list":           "/postback/v3/event/mydb/answer_503", // in the only queue that holds something
		"td-spool list --dead":    "ARRIVAL",
		"td-migrate share *.* 0":  "Revision 1",
		"td-spool drop --all":     "0 dead letters deleted",
		"td-spool list --queue x": `queue "x": must be one of`,
	} {
		if output, code := td(line, env...); code != 0 && !strings.Contains(line, "--queue") || !strings.Contains(output, says) {
			t.Errorf("%s: exit %d: %s", line, code, output)
		}
	}
	isTaken(t, raw(t, addr, post("/postback/v3/event/mydb/answer_503?td_write_key="+spoolKey, asJSON, "{}")))
	g.await(t, "refused mydb.answer_503  by the legacy host  503 ", 1)
	if output, code := td("td-spool list", env...); code != 1 || !strings.Contains(output, "queue: is not set, and several hold something: it must be one of [\"http://127.0.0.1:") {
		t.Errorf("of two queues: exit %d: %s", code, output)
	}
	nowhere := freeAddr(t)
	if output, code := td("td-spool status", "CADDY_ADMIN="+nowhere); code == 0 || !strings.Contains(output, "--address") || !strings.Contains(output, nowhere) ||
		!strings.Contains(output, "/run/td-postback/admin.sock") {
		t.Errorf("nowhere: exit %d: %s", code, output)
	}

	// Its admin endpoint must be its own too.
	second := start(t, env, "td-postback", "--sandbox", "--spool", "--listen", freeAddr(t))
	<-second.exited
	if code := second.cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(second.text(), "CADDY_ADMIN") || !strings.Contains(second.text(), "in use") {
		t.Errorf("a second one: exit %d: %s", code, second.text())
	}
}

// TestExample runs Caddyfile.example as it is, on other ports and against a
// stand-in.
func TestExample(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	example, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	config := strings.Replace(string(example), "# upstream http://127.0.0.1:9000", "upstream "+u.url(), 1)
	if config == string(example) {
		t.Fatal("the example has no line to try a stand-in with")
	}
	plain, secure := freeAddr(t), freeAddr(t)
	_, httpPort, _ := net.SplitHostPort(plain)
	_, httpsPort, _ := net.SplitHostPort(secure)
	config = strings.Replace(config, "{\n", "{\n\tadmin off\n", 1)
	g := &gateway{process: start(t, []string{"HTTP_PORT=" + httpPort, "HTTPS_PORT=" + httpsPort},
		"run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", config))}
	g.await(t, "serving initial configuration", 1)

	client := &http.Client{
		Timeout:       patience,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, //nolint:gosec // the local authority is not installed
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	do := func(method, url, body string) (int, string) {
		for deadline := time.Now().Add(patience); ; {
			req, err := http.NewRequest(method, url, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil { // until the local authority has made the certificate
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
				continue
			}
			answer, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			return resp.StatusCode, string(answer)
		}
	}
	for _, base := range []string{"http://localhost:" + httpPort, "https://localhost:" + httpsPort} {
		if status, body := do("POST", base+target, object); status != 200 || body != "{}" {
			t.Errorf("%s: got %d %q", base, status, body)
		}
		if got := u.next(t); got.body != object || len(got.field("X-TD-Write-Key")) != 1 {
			t.Errorf("%s: v2 saw %+v", base, got)
		}
		if status, body := do("GET", base+"/healthz", ""); status != 200 || body != "ok" {
			t.Errorf("%s/healthz: got %d %q", base, status, body)
		}
		if status, body := do("POST", base+"/other", object); status != 404 || !strings.Contains(body, "not_found") {
			t.Errorf("%s/other: got %d %q", base, status, body)
		}
		if status, _ := do("POST", base+event+"?x="+strings.Repeat("x", 200_000), object); status != 403 {
			t.Errorf("%s, a URL of 200 kB: got %d", base, status)
		}
	}
	for _, base := range []string{"http://127.0.0.1:" + httpPort, "https://127.0.0.1:" + httpsPort} {
		if status, body := do("POST", base+target, object); status != 404 || !strings.Contains(body, "not_found") {
			t.Errorf("another host, %s: got %d %q", base, status, body)
		}
		if status, body := do("GET", base+"/healthz", ""); status != 200 || body != "ok" {
			t.Errorf("a probe by the bare address, %s: got %d %q", base, status, body)
		}
	}
	u.none(t)
	g.await(t, "handled request", 8) // the catch-all has no log
	if text := g.text(); strings.Contains(text, "abcd") {
		t.Errorf("the log holds the key:\n%s", text)
	}
}

// TestValidateAndReload checks that Caddy's own commands work with the module,
// and that a reload takes effect.
func TestValidateAndReload(t *testing.T) {
	t.Parallel()
	first, second := startRecorder(t, nil), startRecorder(t, nil)
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	config := func(u *recorder) string {
		return fmt.Sprintf("{\n\tadmin %s\n\tpersist_config off\n\tauto_https off\n\tdefault_bind 127.0.0.1\n}\n\n"+
			"http://:%s {\n\ttd_postback {\n\t\tupstream %s\n\t}\n}\n",
			admin, port, u.url())
	}
	path := write(t, "Caddyfile", config(first))
	for _, args := range [][]string{{"validate"}, {"adapt"}} {
		if output, code := run(t, append(args, "--adapter", "caddyfile", "--config", path)...); code != 0 {
			t.Errorf("%v: exit %d: %s", args, code, output)
		}
	}
	if output, code := run(t, "fmt", "--diff", path); code != 0 {
		t.Errorf("fmt: exit %d: %s", code, output)
	}
	g := &gateway{addr: addr, process: start(t, nil, "run", "--adapter", "caddyfile", "--config", path)}
	g.await(t, "serving initial configuration", 1)
	raw(t, g.addr, post(target, asJSON, object))
	first.next(t)
	if err := os.WriteFile(path, []byte(config(second)), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, code := run(t, "reload", "--adapter", "caddyfile", "--config", path); code != 0 {
		t.Fatalf("reload: exit %d: %s", code, output)
	}
	raw(t, g.addr, post(target, asJSON, object))
	second.next(t)
	first.none(t)
}

// TestNoKeyInLogs runs with every log on, through every kind of outcome, and
// looks for the key in all that the process wrote.
func TestNoKeyInLogs(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("5ec2e7c0ffee", 2) // long enough to have a key's shape
	u := startRecorder(t, nil)
	down := freeAddr(t)
	pair := newCertificate(t, "localhost")
	plain, secure := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(plain)
	_, securePort, _ := net.SplitHostPort(secure)
	example, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	// The filter is the one that users are told to copy.
	_, filter, _ := strings.Cut(string(example), "log default {")
	filter, _, _ = strings.Cut(filter, "\n\t}\n")
	site := fmt.Sprintf(`
	log {
		%s
	}
	handle_path /down/* {
		td_postback {
			upstream http://%s
			retries 0
		}
	}
	handle_path /handoff/* {
		td_postback {
			upstream %s
			handoff
		}
		reverse_proxy %s
	}
	handle_path /handoff-down/* {
		td_postback {
			upstream http://%s
			handoff
		}
		reverse_proxy %s
	}
	handle_path /next/* {
		route {
			td_postback {
				upstream %s
				pass_thru
			}
			error 500
		}
	}
	handle {
		td_postback {
			upstream %s
			redirect_hosts shop.example
		}
	}`, filter, down, u.url(), u.Addr(), down, down, u.url(), u.url())
	g := serveCaddyfile(t, plain, fmt.Sprintf("{\n debug\n%s\n log default {%s\n}\n servers {\n max_header_size 1MiB\n trace\n}\n}\n"+
		"(site) {\n%s\n}\nhttp://:%s {\n import site\n}\nhttps://localhost:%s {\n tls %s %s\n import site\n}\n",
		globals, filter, site, port, securePort, pair.cert, pair.key))
	h2 := pair.http2Client()

	sent := 0
	for _, prefix := range []string{"", "/down", "/handoff", "/handoff-down", "/next"} {
		for _, carrier := range []struct{ query, headers string }{
			{"?td_write_key=1234/" + secret, ""},
			{"?a=1&td%5Fwrite_key=1234%2F" + secret + "&b=%zz;c", ""},
			{"?td_write_key=" + secret + "%zz", ""},
			{"?a=;td_write_key=" + secret, ""},
			{"", "X-TD-Write-Key: 1234/" + secret + "\r\n"},
			{"", "X-TD-Write-Key: 1234/" + secret + " and more\r\n"},
			{"", "X_TD_WRITE_KEY: 1234/" + secret + "\r\n"},
			{"", "X-TD_Write-Key: 1234/" + secret + "\r\nX-TD.Write.Key: 1234/" + secret + "\r\n"},
			{"", "X-Original-URL: /p?td_write_key=" + secret + "\r\nOrigin: http://x.example/?td_write_key=" + secret + "\r\n"},
			{"%3Ftd%5Fwrite%5Fkey=1234/" + secret, ""},
			{"", "Authorization: TD1 1234/" + secret + "\r\n"},
			{"?td_write_key=1/a&td_redirect=https://shop.example/?td_write_key=" + secret, "Referer: http://x.example/?td_write_key=" + secret + "\r\nPing-To: http://x.example/?td_write_key=" + secret + "\r\n"},
			{"?td_write_key=1234/" + secret, "Cookie: a=" + secret + "\r\nAuthorization: Basic " + secret + "\r\n"},
			{"", "X-Forwarded-Authorization: TD1 " + secret + "\r\nTd-Write-Key: " + secret + "\r\nX-Api-Key: " + secret + "\r\nX-Original-Cookie: k=" + secret + "\r\n"},
			{"", "Referer: http://x.example/#" + secret + "\r\nX-Note: TD1 " + secret + "\r\nX-1234%2F" + secret + ": a\r\nUser-Agent: a 1234/" + secret + "\r\n"},
			{"?a=b&amp;td_write_key=1234/" + secret, "Upgrade: 1234/" + secret + "\r\nTrailer: 1234/" + secret + "\r\nContent-Type: a;k=1234/" + secret + "\r\n"},
		} {
			for _, path := range []string{event, event + "/too/deep", "/elsewhere", event + "&td_write_key=" + secret, "/postback/v3/event/1234/" + secret, "/1234/" + secret + "/x"} {
				request := post(prefix+path+carrier.query, asJSON+carrier.headers, `{"key":"`+secret+`"}`)
				if answer := raw(t, g.addr, request); strings.Contains(answer.body, secret) {
					t.Errorf("the answer holds the key: %s", answer.body)
				}
				raw(t, g.addr, strings.Replace(request, "POST", "GET", 1))
				sent += 2

				req, err := http.NewRequest(http.MethodPost, "https://localhost:"+securePort+prefix+path+carrier.query, strings.NewReader("{}"))
				if err != nil {
					t.Fatal(err)
				}
				for header := range strings.SplitSeq(strings.TrimSuffix(carrier.headers, "\r\n"), "\r\n") {
					if name, value, ok := strings.Cut(header, ": "); ok && name != "Upgrade" && name != "Trailer" {
						req.Header.Set(name, value)
					}
				}
				resp, err := h2.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				sent++
			}
		}
	}
	// A body that ends early and one that is too large.
	conn := dial(t, g.addr)
	fmt.Fprintf(conn, "POST %s?td_write_key=1234/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", event, secret)
	_ = conn.(*net.TCPConn).CloseWrite()
	readReply(t, bufio.NewReader(conn), "POST")
	raw(t, g.addr, "POST "+event+"?td_write_key=1234/"+secret+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
	// A key where nobody would put it.
	for _, request := range []string{
		"POST /next" + event + " HTTP/1.1\r\nHost: 1234%2F" + secret + "\r\n\r\n",
		"TD1%20" + secret + " /down" + event + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST http://1234%2F" + secret + "/handoff-down" + event + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /handoff-down" + event + "?a=%zz&td_write_key=1234/" + secret + " HTTP/1.1\r\nHost: x\r\nX-TD-Write-Key: 1234/" + secret + "\r\nContent-Length: 0\r\n\r\n",
		"POST /down/%2e%2e/" + secret + "/1234/" + secret + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
	} {
		conn := dial(t, g.addr)
		_, _ = io.WriteString(conn, request)
		_, _ = io.CopyN(io.Discard, conn, 12) // the status line
	}

	g.await(t, `"msg":"handled request"`, sent+6) // one Host is none
	g.stop()
	text := g.text()
	for _, want := range []string{"record not delivered", `"logger":"http.log.error`, "upstream roundtrip"} {
		if !strings.Contains(text, want) {
			t.Errorf("the run has no %q, so it proves less than it should", want)
		}
	}
	for line := range strings.SplitSeq(text, "\n") {
		if strings.Contains(line, secret) {
			t.Fatalf("a log line holds the key: %s", line)
		}
	}
}
