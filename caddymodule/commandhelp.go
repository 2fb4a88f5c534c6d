package caddymodule

// planHelp is what --help says of the subcommands of td-migrate that show and change the
// plan.
var planHelp = map[string]string{
	"status": `
Shows the plan: its revision, who has changed it last, whether it is rolled back, and for
each rule the share that is asked for, the real one, and the events of the last hour by
lane. With spool nats, it lists the gateways that share the plan.`,
	"history": `
Lists the changes of the plan, the newest first: the revision, when, who, what and why.
td-migrate undo REVISION makes the rules of one of them the newest.`,
	"share": `
Gives a rule a share: so many percent go to v2, from the next request, and the rest goes
to the legacy host. A share is one of clients, and sticks: to raise it moves more of them,
and none back. (Of keys or tables, if stick in migrate says so.)

A rule is database.table, 'database.*' or '*.*', which is everything. Quote the stars, or
the shell takes them. The most specific rule decides: a table's before a database's, and
that before *.*; of two that are alike, the one for an account. The command names those
that decide before the one that you give.

A percentage is a number from 0 to 100, with at most two digits behind the point, and
without a percent sign.

	$ caddy td-migrate share shop.orders 1 --dry-run
	$ caddy td-migrate share shop.orders 12.34 --note "first shops"
	$ caddy td-migrate share shop.orders 100 --account 1234
	$ caddy td-migrate share 'shop.*' 50
	$ caddy td-migrate share '*.*' 100

--dry-run changes nothing, and says how many callers and events of the last hour would
move. "About" so many is an estimate: a hash decides who moves, and not all send equally
much. Back: td-migrate undo, or at once for everything td-migrate rollback.`,
	"unset": `
Takes a rule away: the next more general one holds, from the next request. *.* stays: give
it a share instead. A rule for an account is another one than that for all.

	$ caddy td-migrate unset shop.orders
	$ caddy td-migrate unset 'shop.*' --account 1234`,
	"rollback": `
Sends everything to the legacy host, from the next request of every connection, whatever
the rules say. It is one request, and asks nothing before. The rules stay as they are
under it, and can be changed. What the spool holds for v2 still goes to v2.
Back: td-migrate resume. One rule alone goes back by td-migrate share shop.orders 0.

With spool nats, it is for all gateways that share the plan, and names those that may not
have heard of it. Give --local on the machine of each of those.`,
	"resume": `
Lifts a rollback: the rules hold again, from the next request. Look at td-migrate status
first, which shows them. --local lifts a rollback --local, and only that does.`,
	"undo": `
Takes back the last change of the rules, or makes the rules of a revision the newest. An
undo is a change, too: a second one takes back the first. To go further back, name a
revision, as history shows it. A rollback stays.

	$ caddy td-migrate undo
	$ caddy td-migrate undo 12 --note "as it was on Monday"`,
}

// callersHelp is what --help says of td-migrate callers.
const callersHelp = `
Lists the callers: one row for each key, table, surface, agent and source, then what to
change in what they send, and what to send instead. A key is shown by its fingerprint, and
no value of a record is shown.

The STATE of a caller is left, if within 7 days it has sent what v2 would not take as it
is; ready to leave the gateway, if it has not; stranger, without a key; or gone, if it has
sent nothing for 7 days.

	$ caddy td-migrate callers --left
	$ caddy td-migrate callers --since 24h --format csv >callers.csv`

// auditHelp is what --help says of td-migrate audit.
const auditHelp = `
Says of each caller what v2's lane would refuse or change of what it sends to the legacy
host now, and ends with a verdict: ready, ready with changes, or not ready. Then the exit
code is 1, and otherwise 0; it is above 1 without a verdict, if the gateway cannot be
asked.

	$ caddy td-migrate audit --since 7d
	$ caddy td-migrate audit --format json`
