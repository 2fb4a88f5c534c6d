package integration

import (
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/td-postback/gateway/sandbox"
)

// documentedCommands finds the documents' commands that read the gateway's log or its
// report and look for something in it.
var documentedCommands = regexp.MustCompile("(?:journalctl -u td-postback -o cat|\\./caddy td-migrate callers)[^`\n]* \\\\?\\| [^`\n]*")

// commandsPrint is what each of them prints of the calls of TestDocumentedCommands, and
// what it leaves out. Those without a text print nothing of them.
var commandsPrint = []struct{ command, prints, leavesOut string }{
	{`grep -E '"level":"(warn|error)"' | grep -v '"handled request"'`, `"msg":"write key of unusual form"`, "handled request"},
	{`grep -E '"result":"(upstream_4xx|some_refused)"'`, `"table":"answer_403"`, "orders"},
	{`grep -F '"result":"no_outcome"'`, "", ""},
	{`grep -iE 'panic|goroutine'`, "", ""},
	{`grep tls.obtain`, "", ""},
	{`grep -E '"result":"(missing|invalid)_write_key"'`, `"table":"nokey"`, "orders"},
	{`grep -E 'unknown write key|unknown database'`, "\t777/…\tshop\torders\tpost\ttrue\n", "1234"},
	{`grep -F 'write key of unusual form'`, `"form":"template"`, "handled request"},
	{`select(.td_postback.database == "shop" and .td_postback.table == "orders")`, "127.0.0.1\tTagger/1.0\t…\n", "5678"},
	{`grep -v '"handled request"' | grep -E '"status":40[13]'`, `"msg":"Postback v2 refused a record","status":403`, "handled request"},
	{`grep -E '"upstream_status":40[13]'`, "1 1234/…\tshop\tanswer_403\t403\n", "nokey"},
	{`'.td_postback | select(.) | [.account, .database, .table, .surface, .key, .result] | @tsv'`, "1 777/…\tshop\torders\tpost\theader\tforwarded\n", "null"},
	{`grep -F 'a write key was never seen before'`, "\tshop\tanswer_403\t20", "nightly"},
	{`grep -F 'a write key that came every day comes no more'`, "1234/#0123456789\tshop\tnightly\t20", "orders"},
	{`startswith("777/")`, "127.0.0.1\tStranger/2.1\tshop\torders\tforwarded\n", "Tagger"},
	{`jq -r '.fingerprint // empty'`, " 777/#", "null"},
	{`select(.database == "shop" and .table == "orders")`, "/postback/v3/event/shop/orders", "answer_403"},
	{`select(.results | has("forwarded")`, "\tshop\torders\tpost\tTagger\t127.0.0.0/24\n", "nokey"},
}

// TestDocumentedCommands runs them over the log and the report of a gateway to which a
// stranger sends, and callers whose key is wrong.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	bash := tool(t, "bash", "bash")
	tool(t, "jq", "jq")
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	addr, admin, dir := freeAddr(t), freeAddr(t), t.TempDir()
	writeReport(t, filepath.Join(dir, "callers.db"), "1234/#0123456789")
	_, port, _ := net.SplitHostPort(addr)
	g := serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n log {\n format filter {\n request td_key\n}\n}\n @call td_call\n log_append @call <fingerprint {td.key}\n td_postback us01 {\n upstream %s\n report {\n dir %s\n}\n keys {\n accounts 1234\n unknown warn\n}\n}\n}\n",
		withAdmin(admin), port, v2.URL, dir))
	raw(t, addr, post("/postback/v3/event/shop/orders", asJSON+"User-Agent: Stranger/2.1\r\nX-TD-Write-Key: 777/feedfacefeedfacefeedfacefeedfacefeedface\r\n", object))
	raw(t, addr, post("/postback/v3/event/shop/orders?td_write_key=YOUR_KEY", asJSON+"User-Agent: Tagger/1.0\r\n", object))
	raw(t, addr, post("/postback/v3/event/shop/answer_403", asJSON+"X-TD-Write-Key: "+callersKey+"\r\n", object))
	raw(t, addr, post("/postback/v3/event/shop/nokey", asJSON, object))
	g.await(t, `"handled request"`, 4)
	awaitRows(t, admin, 5)
	g.await(t, `"a write key was never seen before"`, 3)
	log := write(t, "log", g.text())

	commands := commandsInDocuments(t)
	for _, want := range commandsPrint {
		command := theOnlyOne(t, commands, want.command)
		delete(commands, command)
		script := regexp.MustCompile(`^journalctl -u td-postback -o cat[^|]*`).ReplaceAllString(command, "cat "+log+" ")
		script = strings.Replace(script, "./caddy td-migrate", binary+" td-migrate --address "+admin, 1)
		cmd := exec.Command(bash, "-c", script)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		output, _ := cmd.CombinedOutput() // grep's status is 1 if it finds nothing
		got := string(output)
		if !strings.Contains(got, want.prints) || want.prints == "" && got != "" || want.leavesOut != "" && strings.Contains(got, want.leavesOut) {
			t.Errorf("%s\nprints %s", command, got)
		}
	}
	for command, name := range commands {
		t.Errorf("docs/%s.md has a command of which the test knows nothing: %s", name, command)
	}
}

// commandsInDocuments are the commands, and the names of the documents that have them.
func commandsInDocuments(t *testing.T) map[string]string {
	t.Helper()
	commands := map[string]string{}
	for _, name := range []string{"runbook", "keys", "callers", "recipes"} {
		for _, command := range documentedCommands.FindAllString(readFile(t, "docs/"+name+".md"), -1) {
			commands[strings.ReplaceAll(command, `\|`, "|")] = name // in a table
		}
	}
	return commands
}

// theOnlyOne is the command that has a text in it.
func theOnlyOne(t *testing.T, commands map[string]string, text string) string {
	t.Helper()
	var found []string
	for command := range commands {
		if strings.Contains(command, text) {
			found = append(found, command)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%q is in the commands %q", text, found)
	}
	return found[0]
}
