package caddymodule

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/td-postback/gateway/migration"
)

// This file has the subcommands of td-migrate that show and change the plan.

// addPlanCommands adds them.
func addPlanCommands(cmd *cobra.Command) {
	add := func(use, short string, args cobra.PositionalArgs, run func(caddycmd.Flags) error) *cobra.Command {
		sub := &cobra.Command{Use: use, Short: short, Args: args, RunE: withPlainErrors(run)}
		sub.Long = planHelp[sub.Name()]
		cmd.AddCommand(sub)
		return sub
	}
	noted := func(sub *cobra.Command) *cobra.Command {
		sub.Flags().String("note", "", "Why, for the history; at most "+strconv.Itoa(migration.MaxNote)+" bytes")
		return sub
	}
	ofAccount := func(sub *cobra.Command) *cobra.Command {
		sub.Flags().String("account", "", "Only requests with a key of this account, by its number, such as 1234")
		return noted(sub)
	}
	add("status", "Shows the plan: the share of each rule that is to go to v2, and the one that does", noArguments, planStatusCommand)
	add("history", "Lists the changes of the plan, the newest first", noArguments, planHistoryCommand)
	share := ofAccount(add("share <database.table> <percent>", "Sends a share of a rule's requests to v2, from the next request; the rest goes to the legacy host", ruleAndPercent, shareCommand))
	share.Flags().Bool("dry-run", false, "Change nothing, and say how much of the last hour would move")
	ofAccount(add("unset <database.table>", "Takes a rule away: the next more general one holds", oneRule, unsetCommand))
	alone := func(sub *cobra.Command) {
		sub.Flags().Bool("local", false, "Only this gateway, of several that share a plan")
	}
	alone(noted(add("rollback", "Sends everything to the legacy host, from the next request, whatever the rules say", noArguments, rollbackCommand)))
	alone(noted(add("resume", "Lifts a rollback: the rules hold again", noArguments, resumeCommand)))
	noted(add("undo [<revision>]", "Takes back the last change of the rules, or makes a revision's rules the newest", maybeRevision, undoCommand))
}

func ruleAndPercent(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return errors.New("give a rule and a percentage, such as shop.orders 25, without a percent sign; quote a rule with a *, such as 'shop.*'")
	}
	if _, err := migration.ParseShare(args[1]); err != nil {
		if _, err := migration.ParseShare(args[0]); err == nil {
			return errors.New("give the rule first, and then the percentage, such as shop.orders 25")
		}
		return fmt.Errorf("%w, without a percent sign", err)
	}
	return oneRule(nil, args[:1])
}

func oneRule(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errors.New("give one rule, such as shop.orders; quote one with a *, such as 'shop.*'")
	}
	_, err := migration.ParseRule(args[0], "")
	return err
}

func maybeRevision(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return errors.New("give one revision, as history shows it, or none to take back the last change of the rules")
	}
	for _, arg := range args {
		if _, err := strconv.ParseUint(arg, 10, 64); err != nil {
			return errors.New("the revision must be a whole number, as history shows it")
		}
	}
	return nil
}

const planURI = "/td_postback/migration"

// planOf asks a running gateway for its plan.
func planOf(fs caddycmd.Flags) (*planAnswer, error) {
	plan := new(planAnswer)
	return plan, askAdmin(fs, http.MethodGet, planURI, plan)
}

// changePlan asks a running gateway for a change, and decodes its answer into value. If
// the change is based on no revision, base is nil.
func changePlan(fs caddycmd.Flags, action migration.Action, base *uint64, body *planRequest, value any) error {
	body.Note, body.Who = fs.String("note"), whoAmI()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	header := http.Header{}
	if base != nil {
		header.Set("If-Match", etagOf(*base))
	}
	return sendAdmin(fs, &adminRequest{http.MethodPost, planURI + "/" + string(action), header, text}, value)
}

// basedChange is a change of the plan that there is now, which it returns, too.
func basedChange(fs caddycmd.Flags, action migration.Action, body *planRequest) (outcome outcomeAnswer, before *planAnswer, err error) {
	before, err = planOf(fs)
	if err == nil {
		err = changePlan(fs, action, &before.Revision, body, &outcome)
	}
	return outcome, before, err
}

// whoAmI is the user and the host of this command, for the history.
func whoAmI() string {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = cmp.Or(u.Username, name)
	}
	if person := os.Getenv("SUDO_USER"); person != "" && os.Getuid() == 0 {
		name = person + " as " + name
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

// ruleOf is the rule that a command is for. An account that is given and empty is a
// variable that is not set, and must not stand for all accounts.
func ruleOf(fs caddycmd.Flags) (migration.Rule, error) {
	account := fs.String("account")
	if account == "" && fs.Changed("account") {
		return migration.Rule{}, migration.ErrAccount
	}
	return migration.ParseRule(fs.Arg(0), account)
}

func shareCommand(fs caddycmd.Flags) error {
	rule, err := ruleOf(fs)
	if err != nil {
		return err
	}
	share, err := migration.ParseShare(fs.Arg(1))
	if err != nil {
		return err
	}
	body := &planRequest{Rule: rule.Target, Account: rule.Account, Percent: &share, DryRun: fs.Bool("dry-run")}
	if body.DryRun {
		return dryRun(fs, migration.RuleShare{Rule: rule, Share: share}, body)
	}
	return changeRules(fs, migration.ActionShare, body)
}

// dryRun says what a share would move.
func dryRun(fs caddycmd.Flags, wanted migration.RuleShare, body *planRequest) error {
	var answer movesAnswer
	if err := changePlan(fs, migration.ActionShare, nil, body, &answer); err != nil {
		return err
	}
	m, about := answer.Moves, ""
	if !m.Exact {
		about = "about "
	}
	fmt.Printf("With %s, %d of %d callers of the last hour would send something by the other lane:\n%s%d of %d events would move to v2, and %s%d to the legacy host.\n",
		wanted, m.Callers, m.OfCallers, about, m.ToV2, m.OfEvents, about, m.ToLegacy)
	if !m.Exact {
		fmt.Println("That is an estimate, rounded: a hash decides who moves, and not all send equally much.")
	}
	if m.Held {
		fmt.Println("It is rolled back, so nothing would move before td-migrate resume, or resume --local if only this gateway is: see td-migrate status.")
	}
	printFit(wanted.Rule, answer.Fit)
	fmt.Printf("Nothing has changed: the plan has revision %d.\n", answer.Revision)
	return nil
}

func unsetCommand(fs caddycmd.Flags) error {
	rule, err := ruleOf(fs)
	if err != nil {
		return err
	}
	return changeRules(fs, migration.ActionUnset, &planRequest{Rule: rule.Target, Account: rule.Account})
}

func undoCommand(fs caddycmd.Flags) error {
	body := new(planRequest)
	if fs.NArg() > 0 {
		revision, err := strconv.ParseUint(fs.Arg(0), 10, 64)
		if err != nil {
			return err
		}
		body.Revision = &revision
	}
	return changeRules(fs, migration.ActionUndo, body)
}

// changeRules changes the rules, and says what has become of them.
func changeRules(fs caddycmd.Flags, action migration.Action, body *planRequest) error {
	outcome, before, err := basedChange(fs, action, body)
	if err != nil {
		return err
	}
	if outcome.Change == nil {
		fmt.Printf("Nothing has changed: %s. The plan has revision %d.\n", whyUnchanged(action, body, before), outcome.Revision)
		printFit(body.rule(), outcome.Fit)
		return nil
	}
	from := "in force from the next request"
	switch {
	case before.Local != nil:
		from = "in force here after td-migrate resume --local: until then this gateway is rolled back by itself"
	case before.Hold != nil:
		from = "in force after td-migrate resume: until then it is rolled back"
	}
	fmt.Printf("Revision %d, %s:\n", outcome.Revision, from)
	for _, r := range outcome.Change.Rules {
		fmt.Println("  " + ruleChangeText(r))
	}
	printFit(body.rule(), outcome.Fit)
	fmt.Println("Back: td-migrate undo, or at once for everything td-migrate rollback.")
	return printFollowers(&outcome.Outcome)
}

// whyUnchanged says why a change of the rules has changed nothing.
func whyUnchanged(action migration.Action, body *planRequest, before *planAnswer) string {
	switch {
	case action == migration.ActionShare:
		return fmt.Sprintf("%s has %s %% already", body.rule(), body.Percent)
	case action == migration.ActionUnset:
		rules := make([]migration.Rule, 0, len(before.Rules))
		names := make([]string, 0, len(before.Rules))
		for i := range before.Rules {
			rule := before.Rules[i].Rule
			rules, names = append(rules, rule), append(names, rule.String())
		}
		return fmt.Sprintf("there is no rule %s%s. The rules are %s", body.rule(), didYouMean(nearest(body.rule().String(), names)), listed(rules))
	case body.Revision == nil:
		return "there is no change of the rules to take back"
	default:
		return "the rules are like that already"
	}
}

// ruleChangeText says what a change did to a rule.
func ruleChangeText(r migration.RuleChange) string {
	switch {
	case r.To == nil:
		return fmt.Sprintf("%s: taken away, was %s %% to v2", r.Rule, r.From)
	case r.From == nil:
		return fmt.Sprintf("%s: %s %% to v2, a new rule", r.Rule, r.To)
	default:
		return fmt.Sprintf("%s: %s %% to v2, was %s %%", r.Rule, r.To, r.From)
	}
}

// rollbackCommand is a single request, which depends on nothing else.
func rollbackCommand(fs caddycmd.Flags) error {
	body, what, back := &planRequest{Local: fs.Bool("local")}, "everything", "td-migrate resume"
	if body.Local {
		what, back = "everything that comes to this gateway", "td-migrate resume --local, at this gateway"
	}
	var outcome outcomeAnswer
	if err := changePlan(fs, migration.ActionRollback, nil, body, &outcome); err != nil {
		return err
	}
	if outcome.Message != "" {
		fmt.Printf("Nothing has changed: it is rolled back already. The plan has revision %d.\n", outcome.Revision)
	} else {
		fmt.Printf("Rolled back: %s goes to the legacy host, from the next request. Revision %d.\nWhat the spool holds for v2 still goes to v2.\n", what, outcome.Revision)
	}
	if outcome.Unsaved != "" {
		fmt.Println("Not safe yet: " + oneLine(outcome.Unsaved))
	}
	fmt.Println("Back: " + back + ".")
	if err := printFollowers(&outcome.Outcome); err != nil {
		return fmt.Errorf("%w. Give td-migrate rollback --local on the machine of each of those", err)
	}
	return nil
}

func resumeCommand(fs caddycmd.Flags) error {
	body := &planRequest{Local: fs.Bool("local")}
	outcome, before, err := basedChange(fs, migration.ActionResume, body)
	heldHere := err == nil && before.Local != nil && !body.Local
	switch {
	case err != nil:
		return err
	case outcome.Change == nil && heldHere:
	case outcome.Change == nil:
		fmt.Printf("Nothing has changed: it is not rolled back. The plan has revision %d.\n", outcome.Revision)
	case body.Local:
		fmt.Printf("Resumed: this gateway goes by the plan again, from the next request. Revision %d. td-migrate status shows it.\nBack: td-migrate rollback --local.\n", outcome.Revision)
	default:
		fmt.Printf("Resumed: the rules hold again, from the next request. Revision %d. td-migrate status shows them.\nBack: td-migrate rollback.\n", outcome.Revision)
	}
	if heldHere && len(outcome.Lagging) == 0 { // or it is one of those
		return errHeldHere
	}
	return printFollowers(&outcome.Outcome)
}

var errHeldHere = errors.New("this gateway is rolled back by itself, so everything that comes to it still goes to the legacy host: td-migrate resume --local lifts that")

func planStatusCommand(fs caddycmd.Flags) error {
	plan, err := planOf(fs)
	if err != nil {
		return err
	}
	fmt.Printf("Revision %d. ", plan.Revision)
	if c := plan.LastChange; c != nil {
		fmt.Printf("The last change: %s, %s.\n", changeText(c), byWhom(c.Who, c.Time, c.Note))
	} else {
		fmt.Printf("Nobody has changed the plan yet: %s is the start.\n", plan.Start)
	}
	if h := plan.Hold; h != nil {
		fmt.Printf("It is rolled back, %s: everything goes to the legacy host. The shares below are those after td-migrate resume.\n", byWhom(h.Who, h.Time, h.Note))
	}
	if h := plan.Local; h != nil {
		fmt.Printf("This gateway is rolled back by itself, %s: everything that comes to it goes to the legacy host, until td-migrate resume --local.\n", byWhom(h.Who, h.Time, h.Note))
	}
	for _, problem := range []string{plan.Unsaved, plan.Degraded} {
		if problem != "" {
			fmt.Println("Degraded: " + oneLine(problem))
		}
	}
	fmt.Printf("\nThe share of each rule that is to go to v2, and what went by each lane, v2 or legacy, in the last hour. A share sticks to the %s.\n\n", plan.Stick)
	table := newTable("RULE", "ACCOUNT", "ASKED", "REAL", "V2", "LEGACY")
	for i := range plan.Rules {
		r := &plan.Rules[i]
		real := "-"
		if r.Real != nil {
			real = r.Real.String() + " %"
		}
		table.row(r.Target, cmp.Or(r.Account, "-"), r.Share.String()+" %", real, strconv.FormatUint(r.V2, 10), strconv.FormatUint(r.Events-r.V2, 10))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return printGateways(plan.Gateways)
}

func planHistoryCommand(fs caddycmd.Flags) error {
	var history []migration.Change
	if err := askAdmin(fs, http.MethodGet, planURI+"/history", &history); err != nil {
		return err
	}
	if len(history) == 0 {
		fmt.Println("Nobody has changed the plan yet.")
		return nil
	}
	table := newTable("REVISION", "TIME", "WHO", "CHANGE", "NOTE")
	for _, c := range slices.Backward(history) {
		table.row(strconv.FormatUint(c.Revision, 10), c.Time.UTC().Format(time.RFC3339), c.Who, changeText(&c), cmp.Or(c.Note, "-"))
	}
	return table.Flush()
}

// maxTold is how many rules of a change are told: an undo may change thousands.
const maxTold = 3

// changeText says in a line what a change did.
func changeText(c *migration.Change) string {
	text := string(c.Action)
	if c.Undo != nil {
		text += fmt.Sprintf(" to revision %d", *c.Undo)
	}
	told := make([]string, 0, maxTold+1)
	for i, r := range c.Rules {
		if i == maxTold {
			told = append(told, fmt.Sprintf("and %d rules more", len(c.Rules)-i))
			break
		}
		told = append(told, ruleChangeText(r))
	}
	if len(told) == 0 {
		return text
	}
	return text + " (" + strings.Join(told, "; ") + ")"
}

// byWhom says who made a change, when and why.
func byWhom(who string, at time.Time, note string) string {
	text := "by " + who + " at " + at.UTC().Format(time.RFC3339)
	if note != "" {
		text += fmt.Sprintf(" (%s)", note)
	}
	return text
}

// conflictText says who has changed the plan meanwhile, and what.
func conflictText(c *conflictAnswer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "the plan was changed meanwhile, so this was not done. It has revision %d now", c.Revision)
	for i := range c.Changes {
		change := &c.Changes[i]
		fmt.Fprintf(&b, "; revision %d: %s, %s", change.Revision, changeText(change), byWhom(change.Who, change.Time, change.Note))
	}
	b.WriteString(". Look at td-migrate status, and try again")
	return b.String()
}
