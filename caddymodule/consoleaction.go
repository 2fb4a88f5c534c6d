package caddymodule

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/console"
	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/spool"
)

// This file is what the console's forms do.

// maxForm is how many bytes a form may have.
const maxForm = 16 << 10

// consoleActions are what a form may ask for, by the value of do. Each says what it has
// done.
var consoleActions = map[string]func(*consoleOrder) (*console.Notice, error){
	"rollback": (*consoleOrder).rollback,
	"resume":   (*consoleOrder).resume,
	"share":    (*consoleOrder).share,
	"unset":    (*consoleOrder).unset,
	"undo":     (*consoleOrder).undo,
	"replay":   (*consoleOrder).replay,
	"drop":     (*consoleOrder).drop,
}

// consoleOrder is a form that was sent.
type consoleOrder struct {
	request *http.Request
	form    url.Values
	who     string
	now     time.Time
	where   url.Values // the view to go to then
}

// act does what a form asks for. guard has let the request through.
func (c *Console) act(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return (&consoleRefusal{status: http.StatusBadRequest, why: "the form cannot be read"}).answer(w)
	}
	if !hasToken(r) {
		return forbidden("the page is older than the gateway's process, or not its own: open it again").answer(w)
	}
	do, ok := consoleActions[r.PostForm.Get("do")]
	if !ok {
		return (&consoleRefusal{status: http.StatusBadRequest, why: "there is no such action"}).answer(w)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // which would end what takes longer
	order := &consoleOrder{r, r.PostForm, consoleWho(r), time.Now(), url.Values{}}
	done, err := do(order)
	if err != nil {
		view := console.ParseView(nil)
		return c.show(w, &view, &console.Notice{Level: console.Bad, Text: err.Error(), Unsure: isUnsure(err)}, statusOf(err))
	}
	order.where.Set("said", c.watch.said.keep(done, order.now))
	// The address is that of the page: a browser takes what is before the question mark.
	w.Header().Set("Location", "?"+order.where.Encode())
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// isUnsure reports whether nobody knows if an action that failed was done.
func isUnsure(err error) bool {
	if unsaved, ok := errors.AsType[*migration.NotSavedError](err); ok {
		return unsaved.Unsure
	}
	of, ok := errors.AsType[caddy.APIError](err)
	return ok && errors.Is(of.Err, errUnconfirmed)
}

// statusOf is the status of an action that failed.
func statusOf(err error) int {
	if _, conflict := errors.AsType[*migration.ConflictError](err); conflict {
		return http.StatusConflict
	}
	if _, unsaved := errors.AsType[*migration.NotSavedError](err); unsaved {
		return http.StatusServiceUnavailable
	}
	if of, known := errors.AsType[caddy.APIError](err); known {
		return of.HTTPStatus
	}
	return http.StatusBadRequest
}

// consoleWho names who sent a form: the user, if the site has authentication, and the address.
func consoleWho(r *http.Request) string {
	who := "console"
	if replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		if user, ok := replacer.GetString("http.auth.user.id"); ok && user != "" {
			who = user
		}
	}
	client, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	if client == "" {
		client, _, _ = net.SplitHostPort(r.RemoteAddr)
	}
	return who + "@" + client
}

// change changes the plan as the admin API does, and says what it has done.
func (o *consoleOrder) change(action migration.Action, body *planRequest, text string) (*console.Notice, error) {
	plan := shownPlan.Load()
	if plan == nil {
		return nil, errNoPlan
	}
	order := migration.Order{Time: o.now, Who: o.who, Note: shortNote(o.form.Get("note")), Local: o.form.Has("local")}
	if o.form.Has("base") {
		base, err := strconv.ParseUint(o.form.Get("base"), 10, 64)
		if err != nil {
			return nil, errors.New("base must be a revision")
		}
		order.Base = &base
	}
	outcome, err := body.apply(plan, order, action)
	if err != nil {
		return nil, err
	}
	if outcome.Change == nil && outcome.Unsaved == "" {
		text = unchanged(action) + "."
	}
	return noticeOf(text, outcome), nil
}

// shortNote cuts a note that is too long: a browser counts characters, and a note must not
// keep a rollback from holding.
func shortNote(note string) string {
	if len(note) <= migration.MaxNote {
		return note
	}
	const cut = "…"
	end := migration.MaxNote - len(cut)
	for !utf8.RuneStart(note[end]) {
		end--
	}
	return note[:end] + cut
}

// noticeOf says what became of a change.
func noticeOf(text string, o *migration.Outcome) *console.Notice {
	notice := &console.Notice{Level: console.Good, Text: text}
	for _, more := range []struct {
		is          bool
		what, which string
	}{
		{o.Unsaved != "", "It is not safe yet", o.Unsaved},
		{len(o.Missing) > 0, "Missing gateways", reasonsOf(o.Missing)},
		{len(o.Lagging) > 0, "It may not be in force at", reasonsOf(o.Lagging)},
	} {
		if more.is {
			notice.Level = console.Look
			notice.Text += fmt.Sprintf(" %s: %s.", more.what, more.which)
		}
	}
	if notice.Level == console.Good && len(o.Followed) > 1 {
		notice.Text += fmt.Sprintf(" All %d gateways have followed.", len(o.Followed))
	}
	return notice
}

func (o *consoleOrder) rollback() (*console.Notice, error) {
	what := "Everything goes"
	if o.form.Has("local") {
		what = "Everything that comes to this gateway goes"
	}
	return o.change(migration.ActionRollback, new(planRequest), what+" to the legacy host, from the next request on.")
}

func (o *consoleOrder) resume() (*console.Notice, error) {
	notice, err := o.change(migration.ActionResume, new(planRequest), "The shares of the plan hold again, from the next request on.")
	if err == nil && isHeld() {
		notice = &console.Notice{Level: console.Look, Text: "This gateway is rolled back by itself, so what comes to it still goes to the legacy host. Resume once more."}
	}
	return notice, err
}

// isHeld reports whether everything goes to the legacy host.
func isHeld() bool {
	plan := shownPlan.Load()
	return plan != nil && plan.get().Plan().Signals().Held
}

// whenInForce is from when a change of the rules holds.
func whenInForce() string {
	if isHeld() {
		return ", once it is resumed: it is rolled back."
	}
	return ", from the next request on."
}

func (o *consoleOrder) share() (*console.Notice, error) {
	rule, share, err := ruleAndShare(o.form.Get("rule"), o.form.Get("account"), o.form.Get("percent"))
	if err != nil {
		return nil, err
	}
	body := &planRequest{Rule: rule.Target, Account: rule.Account, Percent: &share}
	return o.change(migration.ActionShare, body, fmt.Sprintf("%s %% of %s go to v2", share, rule)+whenInForce())
}

func (o *consoleOrder) unset() (*console.Notice, error) {
	rule, err := migration.ParseRule(o.form.Get("rule"), o.form.Get("account"))
	if err != nil {
		return nil, err
	}
	body := &planRequest{Rule: rule.Target, Account: rule.Account}
	return o.change(migration.ActionUnset, body, fmt.Sprintf("The rule %s is gone, and the next more general one holds", rule)+whenInForce())
}

func (o *consoleOrder) undo() (*console.Notice, error) {
	revision, err := strconv.ParseUint(o.form.Get("revision"), 10, 64)
	if err != nil {
		return nil, errors.New("revision must be one of the history")
	}
	return o.change(migration.ActionUndo, &planRequest{Revision: &revision}, fmt.Sprintf("The shares are those of revision %d again", revision)+whenInForce())
}

func (o *consoleOrder) replay() (*console.Notice, error) {
	return o.letters("waiting to be delivered again", spool.Log.Replay, undelivered)
}

func (o *consoleOrder) drop() (*console.Notice, error) {
	return o.letters("gone", spool.Log.Drop, func(spool.Letter) bool { return true })
}

// letters changes a dead letter, or all of a queue that are meant.
func (o *consoleOrder) letters(become string, change func(spool.Log, string, ...spool.ID) (int, error), meant func(spool.Letter) bool) (*console.Notice, error) {
	s, ok := selectQueue(o.form.Get("spool"), o.form.Get("queue"))
	if !ok {
		return nil, errors.New("that spool, or that queue, is not open here")
	}
	if s.all = o.form.Has("all"); !s.all {
		id, err := strconv.ParseUint(o.form.Get("id"), 10, 64)
		if err != nil {
			return nil, errors.New("id must be that of a dead letter")
		}
		s.ids = []spool.ID{spool.ID(id)}
	}
	o.where.Set("dead", s.place)
	o.where.Set("queue", s.queue)
	changed, err := s.change(o.request.Context(), change, meant)
	text := fmt.Sprintf("Dead letters that are now %s: %d.", become, changed)
	switch {
	case err != nil && changed == 0:
		return nil, caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: fmt.Errorf("no dead letter is %s: %w", become, err)}
	case err != nil:
		return &console.Notice{Level: console.Look, Text: fmt.Sprintf("%s Not all are: %s.", text, err)}, nil
	case changed == 0:
		text = "Nothing has changed: there is no such dead letter any more."
	}
	return &console.Notice{Level: console.Good, Text: text}, nil
}
