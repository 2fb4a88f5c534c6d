package migration

import (
	"strings"

	"github.com/td-postback/gateway/postback"
)

// Curl is the request that a caller should send to v2 by itself, as a command: to a
// region's host, a database and a table. The key comes from a variable, so that it is
// in no shell's history. A name that no table can have is left open: {table}. Without
// -g, curl would take that for a list, and send to a table of this name.
func Curl(host, database, table string) string {
	to, command := host+eventPath(database, table), "curl"
	if strings.Contains(to, "{") {
		command = "curl -g"
	}
	return command + " -X POST 'https://" + to + "'" +
		` -H "X-TD-Write-Key: $TD_WRITE_KEY" -H 'Content-Type: application/json' -d '{"column":"value"}'`
}

// Tag is the same, as a tag in a page. The key is for its owner to fill in.
func Tag(host, database, table string) string {
	return `<script>fetch("https://` + host + eventPath(database, table) + `", {method: "POST", keepalive: true, ` +
		`headers: {"X-TD-Write-Key": "YOUR_WRITE_KEY", "Content-Type": "application/json"}, ` +
		`body: JSON.stringify({column: "value"})})</script>`
}

// eventPath is the path of v2's Postback, with nothing in it but names: what stands in
// it is copied into a shell, or into a page.
func eventPath(database, table string) string {
	to := postback.Destination{Database: database, Table: table}.Shown()
	return "/postback/v3/event/" + nameOr(to.Database, "{database}") + "/" + nameOr(to.Table, "{table}")
}

func nameOr(name, open string) string {
	if len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool {
		return r > '~' || !isLetter(byte(r)) && !isDigit(byte(r)) && r != '_' //nolint:gosec // G115: it is ASCII by then
	}) || name == "" {
		return open
	}
	return name
}

// Instead is what a caller should send to v2 by itself.
type Instead struct {
	Curl string `json:"curl"`
	Tag  string `json:"tag"`
}

// AddInstead says of each caller that is left what it should send, to a region's host.
func (l *Listing) AddInstead(host string) {
	for i := range l.Rows {
		if r := &l.Rows[i]; r.State == Left {
			r.Instead = &Instead{Curl(host, r.Database, r.Table), Tag(host, r.Database, r.Table)}
		}
	}
}
