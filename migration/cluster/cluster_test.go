package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool/cluster/natstest"
)

var (
	until = natstest.Until
	nodes = natstest.New
	kill  = natstest.KillFor
)

func TestMain(m *testing.M) { natstest.Main(m) }

// servers is the cluster of three that tests use, each under a name of its own. All of it
// runs. Clients do not hear of servers that are not in their URLs.
func servers(t testing.TB) []*natstest.Node {
	t.Helper()
	// The permissions are those of docs/spool-nats.md.
	return natstest.Shared(t, `max_payload: 4MB
		client_advertise: "127.0.0.1:9"
		authorization { users: [{ user: spool, password: secret, permissions: {
			publish: ["*.plan", "*.gateways", "$JS.API.>"], subscribe: ["_INBOX.>", "*.gateways"]
		}}]}`)
}

func urls(servers []*natstest.Node) (urls []string) {
	for _, n := range servers {
		urls = append(urls, n.URL())
	}
	return urls
}

func nameOf(t testing.TB) string { return strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()) }

// open opens the place of a plan.
func open(t testing.TB, urls []string) *Plan {
	t.Helper()
	p, err := Open(Config{URLs: urls, Name: nameOf(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// gateway is a gateway that shares a plan.
func gateway(t testing.TB, name string, urls []string) *migration.Steering {
	t.Helper()
	return gatewayIn(t, name, filepath.Join(t.TempDir(), "plan.db"), urls)
}

func gatewayIn(t testing.TB, name, path string, urls []string) *migration.Steering {
	t.Helper()
	s, err := migration.OpenPlan(migration.PlanConfig{Start: migration.Legacy, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	_ = s.Join(open(t, urls), name) // Trouble says it too
	return s
}

// three are three gateways that share a plan in which all goes to v2.
func three(t testing.TB) []*migration.Steering {
	t.Helper()
	all := make([]*migration.Steering, 0, 3)
	for i := range 3 {
		all = append(all, gateway(t, fmt.Sprint("gw", i+1), urls(servers(t))))
	}
	until(t, "all are well", func() bool { return all[0].Trouble() == nil && all[1].Trouble() == nil && all[2].Trouble() == nil })
	if _, err := all[0].Share(based(all[0]), migration.DefaultRule, migration.AllToV2); err != nil {
		t.Fatal(err)
	}
	until(t, "all have followed", func() bool { return isV2(all[0]) && isV2(all[1]) && isV2(all[2]) })
	return all
}

// based is an order for the newest plan.
func based(s *migration.Steering) migration.Order {
	revision := s.Status().Revision
	return migration.Order{Time: time.Now(), Who: "ann@desk", Base: &revision}
}

func isV2(s *migration.Steering) bool {
	return s.Plan().Lane(&migration.Caller{Client: "203.0.113.7"}, postback.Destination{Database: "shop", Table: "orders"}) == migration.V2
}

// untilReadable waits until the stream is there, with no plan in it.
func untilReadable(t testing.TB, p *Plan) {
	t.Helper()
	until(t, "the stream can be read", func() bool {
		text, number, err := p.Read(t.Context())
		return err == nil && text == nil && number == 0
	})
}

// What is written is read, by who says what it is written over.
func TestReadAndWrite(t *testing.T) {
	a, b := open(t, urls(servers(t))), open(t, urls(servers(t)))
	ctx := t.Context()
	untilReadable(t, a)
	if err := a.Write(ctx, []byte("one"), 0); err != nil {
		t.Fatal(err)
	}
	text, number, err := b.Read(ctx)
	if string(text) != "one" || err != nil {
		t.Fatal(text, err)
	}
	for _, other := range []uint64{0, number + 1} {
		if err := b.Write(ctx, []byte("two"), other); !errors.Is(err, migration.ErrOutdated) {
			t.Error(err)
		}
	}
	if err := b.Write(ctx, []byte("two"), number); err != nil {
		t.Fatal(err)
	}
	if err := a.Write(ctx, []byte("three"), number); !errors.Is(err, migration.ErrOutdated) {
		t.Error(err)
	}
	if text, _, err = a.Read(ctx); string(text) != "two" || err != nil {
		t.Error(text, err)
	}
	admin, err := jetstream.New(direct(t))
	if err != nil {
		t.Fatal(err)
	}
	info, err := admin.Stream(ctx, nameOf(t)+"_plan")
	if err != nil {
		t.Fatal(err)
	}
	if c := info.CachedInfo(); c.Config.Replicas != 3 || c.Config.Storage != jetstream.FileStorage || c.State.Msgs != 1 || c.Config.AllowDirect {
		t.Errorf("%+v", c)
	}
}

// direct is a connection beside the package's, to do what an operator would.
func direct(t testing.TB) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(servers(t)[0].URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// Of writes at the same time over the same plan, one is made.
func TestWritesAtTheSameTime(t *testing.T) {
	a := open(t, urls(servers(t)))
	untilReadable(t, a)
	if err := a.Write(t.Context(), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		_, number, err := a.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() { errs[i] = a.Write(t.Context(), []byte(fmt.Sprint(i)), number) })
		}
		wg.Wait()
		made := slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return errors.Is(err, migration.ErrOutdated) })
		if len(made) != 1 || made[0] != nil {
			t.Fatal(made)
		}
	}
}

// The stream that a plan is in is mended, if a server that does not lead could answer for
// it; made again, if somebody deletes it; and what is in it and no plan is an error.
func TestStreamOfSomebodyElse(t *testing.T) {
	admin, err := jetstream.New(direct(t))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "a stream is there", func() bool {
		_, err := admin.CreateStream(t.Context(), jetstream.StreamConfig{Name: nameOf(t) + "_plan", Subjects: []string{nameOf(t) + ".plan"}, AllowDirect: true, Replicas: 3, MaxAge: time.Hour})
		return err == nil
	})
	p := open(t, urls(servers(t)))
	untilReadable(t, p)
	if err := p.Write(t.Context(), []byte("one"), 0); err != nil {
		t.Error(err)
	}
	if text, _, err := p.Read(t.Context()); string(text) != "one" || err != nil {
		t.Error(text, err)
	}
	info, err := admin.Stream(t.Context(), nameOf(t)+"_plan")
	if err != nil {
		t.Fatal(err)
	}
	if c := info.CachedInfo().Config; c.AllowDirect || c.MaxAge != 0 || c.MaxMsgsPerSubject != 1 {
		t.Errorf("%+v", c)
	}
	if _, err := admin.Publish(t.Context(), nameOf(t)+".plan", []byte("no plan")); err != nil {
		t.Fatal(err)
	}
	if text, _, err := p.Read(t.Context()); !errors.Is(err, errDamaged) {
		t.Error(text, err)
	}
	if err := admin.DeleteStream(t.Context(), nameOf(t)+"_plan"); err != nil {
		t.Fatal(err)
	}
	untilReadable(t, p)
}

// Three gateways follow each other, and a rollback holds at all within a second.
func TestThreeGateways(t *testing.T) {
	all := three(t)
	for i, s := range all {
		out, err := s.Rollback(migration.Order{Time: time.Now(), Who: "ann@desk"})
		if err != nil || len(out.Lagging) > 0 || len(out.Followed) != 3 {
			t.Fatalf("%+v, %v", out, err)
		}
		if isV2(all[0]) || isV2(all[1]) || isV2(all[2]) {
			t.Error("some go on after the answer")
		}
		out, err = all[(i+1)%3].Resume(based(s))
		if err != nil || len(out.Lagging) > 0 || !isV2(all[0]) || !isV2(all[1]) || !isV2(all[2]) {
			t.Fatalf("%+v, %v", out, err)
		}
	}
}

// Two gateways change the same plan: one does, and the other hears of it.
func TestConflict(t *testing.T) {
	all := three(t)
	orders := []migration.Order{based(all[0]), based(all[1]), based(all[2])}
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i, s := range all {
		wg.Go(func() { _, errs[i] = s.Share(orders[i], migration.Rule{Target: "a.b"}, []migration.Share{1, 2, 3}[i]) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		conflict, ok := errors.AsType[*migration.ConflictError](err)
		if err == nil {
			made++
		} else if !ok || len(conflict.Changes) != 1 {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Error(errs)
	}
}

// The server that leads the plan's stream dies: a rollback holds at once where it was
// ordered, and at all gateways when another server leads.
func TestLeaderDies(t *testing.T) {
	all := three(t)
	admin, err := jetstream.New(direct(t))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := admin.Stream(t.Context(), nameOf(t)+"_plan")
	if err != nil {
		t.Fatal(err)
	}
	leader := stream.CachedInfo().Cluster.Leader
	for i, n := range servers(t) {
		if leader == fmt.Sprint("n", i+1) {
			kill(t, n)
		}
	}
	began := time.Now()
	answered := make(chan *migration.Outcome)
	go func() {
		out, err := all[0].Rollback(migration.Order{Time: time.Now()})
		if err != nil {
			t.Error(err)
		}
		answered <- out
	}()
	until(t, "it holds here", func() bool { return !isV2(all[0]) })
	if time.Since(began) > time.Second {
		t.Error("that took", time.Since(began))
	}
	out := <-answered
	until(t, "it holds at all", func() bool { return !isV2(all[1]) && !isV2(all[2]) })
	t.Log("at all after", time.Since(began), out)
	until(t, "it is in the plan", func() bool { return all[1].Status().Hold != nil && all[0].Trouble() == nil })
}

// Without a majority, a change is refused, and a rollback holds where it was ordered; it
// holds at all when the servers are back.
func TestWithoutMajority(t *testing.T) {
	all := three(t)
	kill(t, servers(t)[1])
	kill(t, servers(t)[2])
	until(t, "it shows", func() bool { return all[0].Trouble() != nil })
	_, err := all[0].Share(based(all[0]), migration.DefaultRule, migration.NoneToV2)
	if !errors.As(err, new(*migration.NotSavedError)) {
		t.Error(err)
	}
	out, err := all[1].Rollback(migration.Order{Time: time.Now()})
	if err != nil || isV2(all[1]) || out.Unsaved == "" || len(out.Lagging) != 2 || len(out.Followed) != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	servers(t)[1].Start(t)
	servers(t)[2].Start(t)
	until(t, "it holds at all", func() bool { return !isV2(all[0]) && !isV2(all[2]) && all[1].Trouble() == nil })
	if s := all[1].Status(); s.Hold == nil || s.Local != nil {
		t.Errorf("%+v", s)
	}
}

// A gateway is cut off, rolled back by itself, and comes back: what the others have done
// does not take it towards v2.
func TestCutOff(t *testing.T) {
	all := three(t)
	own := nodes(t, t.TempDir(), 1, "")[0] // an address at which nothing listens
	way := natstest.NewWay(t, servers(t)[0].Addr)
	path := filepath.Join(t.TempDir(), "plan.db")
	lost := gatewayIn(t, "gw4", path, []string{"nats://spool:secret@" + way.Addr})
	until(t, "it follows", func() bool { return isV2(lost) && lost.Trouble() == nil })
	until(t, "the others know it", func() bool { return len(all[0].Status().Gateways) == 4 && len(all[1].Status().Gateways) == 4 })
	way.Cut()
	until(t, "it is cut off", func() bool { return lost.Trouble() != nil })
	if !isV2(lost) {
		t.Error("it does not go on")
	}
	if out, err := lost.Rollback(migration.Order{Time: time.Now(), Local: true}); err != nil || isV2(lost) || out.Unsaved != "" {
		t.Fatal(out, err)
	}
	out, err := all[0].Rollback(migration.Order{Time: time.Now()})
	if err != nil || len(out.Followed) != 3 || len(out.Lagging) != 1 || out.Lagging[0].Name != "gw4" {
		t.Fatalf("%+v, %v", out, err)
	}
	if out, err = all[1].Resume(based(all[1])); err != nil || len(out.Lagging) != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := lost.Close(); err != nil {
		t.Fatal(err)
	}
	lost = gatewayIn(t, "gw4", path, []string{"nats://" + own.Addr}) // it starts without the cluster
	if isV2(lost) || lost.Trouble() == nil {
		t.Error("a restart resumes it")
	}
	if err := lost.Close(); err != nil {
		t.Fatal(err)
	}
	way.Mend()
	lost = gatewayIn(t, "gw4", path, []string{"nats://spool:secret@" + way.Addr})
	until(t, "it follows", func() bool { return lost.Trouble() == nil && lost.Status().Revision == all[0].Status().Revision })
	if isV2(lost) || !isV2(all[0]) {
		t.Error("it resumes by itself")
	}
	o := based(lost)
	o.Local = true
	if _, err := lost.Resume(o); err != nil || !isV2(lost) {
		t.Error(err)
	}
}

// A gateway starts without the cluster, and goes on with its plan; then with one.
func TestStartWithoutTheCluster(t *testing.T) {
	all := three(t)
	path := filepath.Join(t.TempDir(), "plan.db")
	s := gatewayIn(t, "gw4", path, urls(servers(t)))
	if err := s.Close(); err != nil || !isV2(s) {
		t.Fatal(err)
	}
	dead := nodes(t, t.TempDir(), 1, "")[0]
	began := time.Now()
	s = gatewayIn(t, "gw4", path, urls([]*natstest.Node{dead}))
	if err := s.Trouble(); !isV2(s) || !errors.Is(err, migration.ErrAway) {
		t.Error(err)
	}
	if took := time.Since(began); took > patience+joinSlack {
		t.Error("it started after", took)
	}
	if _, err := all[0].Share(based(all[0]), migration.DefaultRule, migration.NoneToV2); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s = gatewayIn(t, "gw4", path, urls(servers(t))); isV2(s) {
		t.Error("it does not follow at its start")
	}
}

// joinSlack is what a start may take beside its patience, on a machine that is busy.
const joinSlack = 2 * time.Second

// A user that may not speak of gateways: each says that it hears nobody.
func TestPermissions(t *testing.T) {
	n := nodes(t, t.TempDir(), 1, `authorization { users: [{ user: spool, password: secret, permissions: {
		publish: ["*.plan", "$JS.API.>"], subscribe: ["_INBOX.>"] }}]}`)[0]
	n.User = "spool:secret@"
	t.Cleanup(n.Kill)
	n.Start(t)
	p, err := Open(Config{URLs: []string{n.URL()}, Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := migration.OpenPlan(migration.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	_ = s.Join(p, "gw1")
	until(t, "it says so", func() bool {
		err := s.Trouble()
		return err != nil && strings.Contains(err.Error(), "does not hear itself")
	})
}

// The largest plan that people would make fits a message.
func TestLargePlanFits(t *testing.T) {
	var text strings.Builder
	for i := range 3 * migration.MaxRules {
		fmt.Fprintf(&text, `{"rule":"database_%x.some_table_%x","account":"%d","percent":12.34},`, i*7919%977, i*104729%99991, i%9973)
	}
	data, err := pack([]byte(text.String()))
	if err != nil || len(data) > 1<<20 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	again, err := unpack(data)
	if err != nil || string(again) != text.String() {
		t.Error(err)
	}
	p := open(t, urls(servers(t)))
	untilReadable(t, p)
	if err := p.Write(t.Context(), []byte(text.String()), 0); err != nil {
		t.Error(err)
	}
	if err := p.Write(t.Context(), randomText(5<<20), 1); err == nil || !strings.Contains(err.Error(), "max_payload") {
		t.Error(err)
	}
}

func FuzzUnpack(f *testing.F) {
	data, err := pack([]byte("a plan"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("no plan"))
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := unpack(data)
		if err != nil {
			return
		}
		if data, err = pack(text); err != nil {
			t.Fatal(err)
		}
		if again, err := unpack(data); err != nil || string(again) != string(text) {
			t.Error(err)
		}
	})
}

func randomText(n int) []byte {
	text := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(text)
	return text
}
