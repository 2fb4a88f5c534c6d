package integration

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dustin/go-humanize"
	"go.yaml.in/yaml/v3"
)

// This file compares the files of deploy/ with each other, with the examples and
// with the binary: nobody starts a cluster for it.

// readFile reads a file of the repository.
func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile("../" + path) //nolint:gosec // G304: the test's own
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// node is a part of a YAML document.
type node struct {
	t     *testing.T
	value any
	path  string
}

// at goes down by names and positions. What is not there fails the test.
func (n node) at(steps ...any) node {
	n.t.Helper()
	for _, step := range steps {
		var found any
		switch step := step.(type) {
		case string:
			object, _ := n.value.(map[string]any)
			found, n.path = object[step], n.path+"."+step
		case int:
			if list, _ := n.value.([]any); step < len(list) {
				found = list[step]
			}
		}
		if found == nil {
			n.t.Fatalf("nothing at %s %v", n.path, step)
		}
		n.value = found
	}
	return n
}

func (n node) text() string {
	n.t.Helper()
	text, ok := n.value.(string)
	if !ok {
		n.t.Fatalf("%s is %v, no text", n.path, n.value)
	}
	return text
}

func (n node) number() int {
	n.t.Helper()
	number, ok := n.value.(int)
	if !ok {
		n.t.Fatalf("%s is %v, no number", n.path, n.value)
	}
	return number
}

// named is the element of a list with this name.
func (n node) named(name string) node {
	n.t.Helper()
	list, _ := n.value.([]any)
	for _, element := range list {
		if object, _ := element.(map[string]any); object["name"] == name {
			return node{n.t, element, n.path + "." + name}
		}
	}
	n.t.Fatalf("%s has no %s", n.path, name)
	return n
}

// documents are the YAML documents of a file, by kind and name.
func documents(t *testing.T, path string) map[string]node {
	t.Helper()
	found := map[string]node{}
	decoder := yaml.NewDecoder(strings.NewReader(readFile(t, path)))
	for {
		var value map[string]any
		err := decoder.Decode(&value)
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(path, err)
		}
		n := node{t, value, path}
		name := ""
		if value["kind"] != nil {
			name = n.at("kind").text() + " " + n.at("metadata", "name").text()
		}
		found[name] = n
	}
}

// match is what a pattern's group finds in a text.
func match(t *testing.T, pattern, text string) string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("%s is not in %s", pattern, text)
	}
	return found[1]
}

// mebibytes reads a size such as 8GiB, 12Gi or 512m (Docker's).
func mebibytes(t *testing.T, text string) int {
	t.Helper()
	if number, docker := strings.CutSuffix(text, "m"); docker {
		text = number + "Mi"
	}
	size, err := humanize.ParseBytes(strings.TrimSuffix(text, "B") + "B")
	if err != nil {
		t.Fatal(err)
	}
	return int(size >> 20)
}

// TestKubernetes compares deploy/kubernetes.yaml with the image and with itself,
// and runs its Caddyfile.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	image := readFile(t, "deploy/Containerfile")
	all := documents(t, "deploy/kubernetes.yaml")
	caddyfile := all["ConfigMap td-postback"].at("data", "Caddyfile").text()
	set := all["StatefulSet td-postback"].at("spec")
	pod := set.at("template", "spec")
	gateway := pod.at("containers").named("gateway")

	// Names and labels lead to each other.
	for _, name := range []string{"Service td-postback", "Service td-postback-pods"} {
		if all[name].at("spec", "selector", "app").text() != set.at("template", "metadata", "labels", "app").text() {
			t.Errorf("%s selects no pod", name)
		}
	}
	if set.at("serviceName").text() != "td-postback-pods" || set.at("selector", "matchLabels", "app").text() != "td-postback" ||
		all["PodDisruptionBudget td-postback"].at("spec", "selector", "matchLabels", "app").text() != "td-postback" {
		t.Error("the StatefulSet's names do not fit")
	}

	// The image's user, its volume and the place of its Caddyfile.
	user := match(t, `(?m)^USER (\d+:\d+)$`, image)
	for _, name := range []string{"runAsUser", "runAsGroup", "fsGroup"} {
		if got := pod.at("securityContext", name).number(); user != "65532:65532" || got != 65532 {
			t.Errorf("%s is %d, and the image's user is %s", name, got, user)
		}
	}
	mounts := gateway.at("volumeMounts")
	if got, want := mounts.named("data").at("mountPath").text(), match(t, `(?m)^VOLUME (\S+)$`, image); got != want {
		t.Errorf("the volume is at %s, and the image has it at %s", got, want)
	}
	if got, want := mounts.named("config").at("mountPath").text()+"/Caddyfile", match(t, `"--config", "([^"]+)"`, image); got != want {
		t.Errorf("the Caddyfile is at %s, and the image reads %s", got, want)
	}
	if secret := pod.at("volumes").named("key").at("secret", "secretName").text(); !strings.Contains(readFile(t, "deploy/kubernetes.yaml"), "create secret generic "+secret+" --from-literal=spool.key=") {
		t.Errorf("nothing says how to make the secret %s", secret)
	}

	// The ports that the Caddyfile has.
	for name, port := range map[string]string{"http": ":8080 {", "metrics": ":9180 {"} {
		if number := gateway.at("ports").named(name).at("containerPort").number(); port != ":"+strconv.Itoa(number)+" {" || !strings.Contains(caddyfile, "\n"+port) {
			t.Errorf("port %s is %d", name, number)
		}
	}
	for _, probe := range []string{"readinessProbe", "livenessProbe"} {
		if got := gateway.at(probe, "httpGet"); got.at("path").text() != "/healthz" || got.at("port").text() != "http" {
			t.Errorf("%s: %v", probe, got.value)
		}
	}

	// Times and sizes that belong together.
	pause, stop := gateway.at("lifecycle", "preStop", "sleep", "seconds").number(), pod.at("terminationGracePeriodSeconds").number()
	if match(t, `grace_period (\d+s)`, caddyfile) != "40s" || stop < pause+40+5 {
		t.Errorf("a stop has %d s", stop)
	}
	goLimit := mebibytes(t, gateway.at("env").named("GOMEMLIMIT").at("value").text())
	if limit := mebibytes(t, gateway.at("resources", "limits", "memory").text()); goLimit < 256+64+64 || limit < goLimit*3/2 {
		t.Errorf("GOMEMLIMIT is %d MiB, the limit %d MiB", goLimit, limit)
	}
	volume := mebibytes(t, set.at("volumeClaimTemplates", 0, "spec", "resources", "requests", "storage").text())
	if size := mebibytes(t, match(t, `max_size (\S+)`, caddyfile)); volume < size*5/4+1024 {
		t.Errorf("the volume has %d MiB for a spool of %d MiB", volume, size)
	}

	runsWell(t, caddyfile, mounts.named("key").at("mountPath").text()+"/spool.key")
}

// runsWell runs a Caddyfile of deploy/kubernetes.yaml, on other ports and with
// another key. The doctor has nothing to say of it that loses records or shows
// keys.
func runsWell(t *testing.T, caddyfile, keyFile string) {
	t.Helper()
	td := newTreasureData(t)
	addr, metrics := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	_, metricsPort, _ := net.SplitHostPort(metrics)
	if !strings.Contains(caddyfile, keyFile) {
		t.Fatalf("%s is not in %s", keyFile, caddyfile)
	}
	key := write(t, "spool.key", strings.Repeat("0f", 32)+"\n")
	config := write(t, "Caddyfile", strings.NewReplacer(":8080", ":"+port, ":9180", ":"+metricsPort, keyFile, key).Replace(caddyfile))
	if output, code := run(t, "td-doctor", "--offline", "--config", config); code != 0 || strings.Contains(output, "SHOWS WRITE KEYS") {
		t.Errorf("exit %d: %s", code, output)
	}
	p := start(t, append([]string{"CADDY_ADMIN=" + freeAddr(t)}, td.env...), "run", "--adapter", "caddyfile", "--config", config)
	p.await(t, "serving initial configuration", 1)
	sent{addr: addr, host: "10.0.0.1:8080", path: "/healthz"}.expect(t, http.StatusOK, "ok")
	sent{addr: addr, host: recipeHost, path: recipePath}.expect(t, http.StatusOK, "{}")
	td.next(t)
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), "caddy_td_postback_requests_total") {
		t.Errorf("%v: no metrics in %.200s", err, text)
	}
}

// TestCompose compares deploy/compose.yaml with the image and with the example.
func TestCompose(t *testing.T) {
	t.Parallel()
	image := readFile(t, "deploy/Containerfile")
	compose := documents(t, "deploy/compose.yaml")[""]
	gateway := compose.at("services", "gateway")

	if _, err := os.Stat("../" + gateway.at("build", "dockerfile").text()); err != nil || gateway.at("build", "context").text() != ".." {
		t.Error("the image is built of", gateway.at("build").value, err)
	}
	exposed := strings.Fields(match(t, `(?m)^EXPOSE (.*)$`, image))
	ports, _ := gateway.at("ports").value.([]any)
	for _, port := range ports {
		_, inside, _ := strings.Cut(strings.TrimSuffix(port.(string), "/udp"), ":")
		if !slices.Contains(exposed, inside) || !strings.Contains(readFile(t, "Caddyfile.example"), ":"+inside+"}") {
			t.Errorf("nobody listens on port %s", inside)
		}
	}
	if len(ports) != 3 {
		t.Errorf("ports %v", ports)
	}
	volumes, _ := gateway.at("volumes").value.([]any)
	if want := "data:" + match(t, `(?m)^VOLUME (\S+)$`, image); !slices.Contains(volumes, any(want)) {
		t.Errorf("volumes %v, want %s", volumes, want)
	}
	compose.at("volumes", "data")
	if !strings.Contains(readFile(t, "deploy/compose.yaml"), ":"+match(t, `"--config", "([^"]+)"`, image)+":ro") {
		t.Error("the Caddyfile's place is not the image's")
	}
	environment, _ := gateway.at("environment").value.(map[string]any)
	for name := range environment {
		if name != "GOMEMLIMIT" && !strings.Contains(readFile(t, "Caddyfile.example"), "{$"+name+":") {
			t.Errorf("%s is in the environment, and the example does not read it", name)
		}
	}
	// As the unit has them.
	unit := readFile(t, "deploy/td-postback.service")
	if got, want := gateway.at("stop_grace_period").text(), match(t, `TimeoutStopSec=(\d+)`, unit)+"s"; got != want {
		t.Errorf("a stop has %s, and with systemd %s", got, want)
	}
	if got, want := gateway.at("mem_limit").text(), strings.ToLower(match(t, `MemoryMax=(\d+M)`, unit)); got != want {
		t.Errorf("mem_limit is %s, and with systemd %s", got, want)
	}
	if got, want := strconv.Itoa(gateway.at("ulimits", "nofile").number()), match(t, `LimitNOFILE=(\d+)`, unit); got != want {
		t.Errorf("nofile is %s, and with systemd %s", got, want)
	}
}
