// Command bench sends the same work through this gateway, stock Caddy with a
// recipe for it, nginx, nginx with Lua and HAProxy, in turns and on one machine,
// and prints what each needed:
//
//	go run ./bench
//
// README.md in this directory says what the figures mean.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// writeKey is the key of every request.
const writeKey = "1234/0123456789abcdef0123456789abcdef01234567"

const (
	eventPath = "/postback/v3/event/db/tbl"
	eventURI  = eventPath + "?td_write_key=" + writeKey
)

// pixelURI is a record of five columns, of which two come from the request.
const pixelURI = eventURI + "&td_format=pixel&event=view&page_url=https%3A%2F%2Fshop.example%2Fitem%3Fid%3D7" +
	"&title=Caf%C3%A9+noir&td_ip=td_ip&td_ua=td_ua"

// work is one kind of load.
type work struct {
	Name  string
	uri   string
	size  int  // of the body in bytes; 0 for a GET
	close bool // a new connection for every request
	tls   bool // on both sides of the proxy
	http2 bool // from the caller

	connections int  // how many there are; concurrency if 0
	together    bool // all proxies have it at a time, and not in turns
	tables      int  // that POSTs of events go to in turns; if 0, all bodies are the same
}

// works are the kinds of load whose names match: three requests, each in four
// ways, and HTTP/2.
func works(pattern string) ([]work, error) {
	matches, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	var all []work
	for _, base := range []work{
		{Name: "POST 300 B", uri: eventURI, size: 300},
		{Name: "GET pixel", uri: pixelURI},
		{Name: "POST 64 KiB", uri: eventURI, size: 64 << 10},
	} {
		for _, tls := range []bool{false, true} {
			for _, close := range []bool{false, true} {
				w := base
				w.tls, w.close = tls, close
				if tls {
					w.Name += ", TLS"
				}
				if close {
					w.Name += ", new connections"
				}
				all = append(all, w)
			}
		}
	}
	all = append(all, work{Name: "POST 300 B, TLS, HTTP/2", uri: eventURI, size: 300, tls: true, http2: true})
	all = slices.DeleteFunc(all, func(w work) bool { return !matches.MatchString(w.Name) })
	if len(all) == 0 {
		return nil, errors.New("no kind of work has such a name")
	}
	return all, nil
}

// goes reports whether a proxy can do the work at all.
func (w work) goes(proxy string) bool {
	return proxy == gateway || w.size > 0 // only the gateway makes records from a query
}

func main() {
	log.SetFlags(0)
	seconds := flag.Int("seconds", 4, "how long each measurement takes")
	rounds := flag.Int("rounds", 3, "how many measurements of each kind; the table shows their medians, and the medians of their ratios")
	only := flag.String("only", "", "measure only kinds of work whose name matches this regular expression")
	proxies := flag.String("proxies", strings.Join(proxyNames, ","), "measure only these proxies")
	out := flag.String("json", "", "file for the results as JSON")
	spool := flag.Bool("spool", false, "compare the gateway with and without a spool instead")
	lanes := flag.Bool("lanes", false, "compare the gateway's two lanes instead")
	drain := flag.Int("drain", 0, "compare nothing, but let the gateway deliver so many records that it has kept")
	profileTo := flag.String("profile", "", "compare nothing, but write a CPU profile of the gateway to this file; with -drain, of the delivery's first seconds")
	flag.Parse()

	length := time.Duration(*seconds) * time.Second
	selected, err := works(*only)
	if err != nil {
		log.Fatalf("bench: -only %q: %v", *only, err)
	}
	names := strings.Split(*proxies, ",")
	for _, name := range names {
		if !slices.Contains(proxyNames, name) {
			log.Fatalf("bench: -proxies %q: the proxies are %s", name, strings.Join(proxyNames, ", "))
		}
	}
	if *seconds < 1 || *rounds < 1 {
		log.Fatalf("bench: -seconds %d -rounds %d: both must be at least 1", *seconds, *rounds)
	}
	switch {
	case *spool:
		err = runSpool(length, *rounds)
	case *lanes:
		err = runLanes(length, *rounds)
	case *drain > 0:
		err = runDrain(*drain, *rounds, length, *profileTo)
	case *profileTo != "":
		err = profile(length, selected, *profileTo)
	default:
		err = run(length, *rounds, selected, names, *out)
	}
	if err != nil {
		log.Fatal("bench: ", err)
	}
}

func run(length time.Duration, rounds int, selected []work, proxies []string, out string) error {
	if err := install("wrk", "nginx", luaModule, "haproxy", "h2load"); err != nil {
		return err
	}
	place, err := prepare()
	if err != nil {
		return err
	}
	defer place.remove()

	res := results{Machine: describeMachine(), Versions: place.versions(), Seconds: length.Seconds(), Rounds: rounds}
	for _, w := range selected {
		rows, err := measure(place, w, proxies, length, rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", w.Name, err)
		}
		res.Rows = append(res.Rows, rows...)
	}
	fmt.Print(res.String())
	if out != "" {
		text, err := json.MarshalIndent(&res, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(text, '\n'), 0o600); err != nil {
			return err
		}
	}
	return res.gatewayErrors()
}

// inTurns measures one row after the other, so that each has the machine for itself.
func inTurns(count int, one func(i int) error) error {
	for i := range count {
		if err := one(i); err != nil {
			return err
		}
	}
	return nil
}

// together measures all rows at a time, so that what else the machine does in a moment
// meets all of them. Only what a request costs can be compared then.
func together(count int, one func(i int) error) error {
	var all sync.WaitGroup
	failed := make([]error, count)
	for i := range count {
		all.Go(func() { failed[i] = one(i) })
	}
	all.Wait()
	return errors.Join(failed...)
}

// measure sends one kind of work through every proxy, round by round, and each round in
// turns or together.
func measure(place *place, w work, proxies []string, length time.Duration, rounds int) ([]row, error) {
	standin, err := place.start("standin")
	if err != nil {
		return nil, err
	}
	defer standin.stop()

	var rows []row
	running := map[string]*process{}
	for _, name := range proxies {
		if !w.goes(name) {
			continue
		}
		p, err := place.start(name)
		if err != nil {
			return nil, err
		}
		defer p.stop()
		running[name] = p
		if err := place.verify(name, w.tls); err != nil {
			return nil, err
		}
		rows = append(rows, row{Work: w.Name, Proxy: name})
		if _, err := place.once(w, name, p, time.Second); err != nil { // warm up
			return nil, err
		}
	}
	round := inTurns
	if w.together {
		round = together
	}
	for range rounds {
		if err := round(len(rows), func(i int) error {
			r := &rows[i]
			m, err := place.once(w, r.Proxy, running[r.Proxy], length)
			if err != nil {
				return fmt.Errorf("%s: %w", r.Proxy, err)
			}
			r.Measurements = append(r.Measurements, m)
			log.Printf("%-40s %-9s %8.0f/s %6.1f µs", w.Name, r.Proxy, m.Rate, m.CPU)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	for i := range rows {
		rows[i].Median = median(rows[i].Measurements)
	}
	return rows, nil
}

// once measures one kind of work through one proxy.
func (p *place) once(w work, name string, running *process, length time.Duration) (m measurement, err error) {
	cpu, err := running.cpu()
	if err != nil {
		return m, err
	}
	before, err := countsOf("standin")
	if err != nil {
		return m, err
	}
	if m, err = p.load(w, name, length); err != nil {
		return m, err
	}
	events := m.Requests
	switch {
	case name == spoolDown:
		m.Left, err = kept(name)
	case spoolFiles[name] != "":
		events, err = m.settle(name, before)
	}
	if err != nil {
		return m, err
	}
	after, err := running.cpu()
	if err != nil {
		return m, err
	}
	if err := m.countV2(before); err != nil {
		return m, err
	}
	m.CPU = float64((after - cpu).Microseconds()) / float64(events)
	m.PeakMiB, err = running.peakMemory()
	return m, err
}

// profile writes a CPU profile of the gateway at every kind of work that is
// asked for.
func profile(length time.Duration, selected []work, file string) error {
	if err := install("wrk", "h2load"); err != nil {
		return err
	}
	place, err := prepare()
	if err != nil {
		return err
	}
	defer place.remove()
	standin, err := place.start("standin")
	if err != nil {
		return err
	}
	defer standin.stop()
	p, err := place.start(gateway)
	if err != nil {
		return err
	}
	defer p.stop()

	fetched := make(chan error, 1)
	go func() { fetched <- fetchProfile(gateway, length*time.Duration(len(selected)), file) }()
	for _, w := range selected {
		if _, err := place.load(w, gateway, length); err != nil {
			return err
		}
	}
	return <-fetched
}

// fetchProfile has Caddy's admin API record for a while.
func fetchProfile(name string, length time.Duration, file string) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%.0f", admin(name), length.Seconds())
	resp, err := http.Get(url) //nolint:gosec,noctx // G107: on loopback
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// luaModule is where Debian has nginx's module for Lua.
const luaModule = "/usr/lib/nginx/modules/ngx_http_lua_module.so"

// install installs what is missing, on Debian and its kin.
func install(tools ...string) error {
	packages := map[string]string{"h2load": "nghttp2-client", luaModule: "libnginx-mod-http-lua"}
	var missing []string
	for _, tool := range tools {
		_, err := exec.LookPath(tool)
		if errors.Is(err, fs.ErrPermission) {
			err = nil // it is there, and a module is not executable
		}
		if err != nil {
			name := tool
			if p, ok := packages[tool]; ok {
				name = p
			}
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	log.Print("installing ", strings.Join(missing, ", "))
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "-qq"}, missing...)} {
		cmd := exec.Command("apt-get", args...) //nolint:gosec,noctx // G204: the names above
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("install %s: %w\n%s", strings.Join(missing, ", "), err, output)
		}
	}
	return nil
}

// describeMachine names the processor.
func describeMachine() string {
	model := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, %s", runtime.NumCPU(), model, runtime.GOOS)
}
