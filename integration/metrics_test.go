package integration

import (
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// metricsURL is where a process says that it shows its metrics.
var metricsURL = regexp.MustCompile(`http://127\.0\.0\.1:\d+/metrics`)

// page fetches a page of a process; empty if it does not answer.
func page(url string) string {
	reply, err := http.Get(url)
	if err != nil {
		return ""
	}
	defer reply.Body.Close()
	b, err := io.ReadAll(reply.Body)
	if err != nil {
		return ""
	}
	return string(b)
}

// shows waits until a page has a line that matches.
func shows(t *testing.T, url, line string) {
	t.Helper()
	r := regexp.MustCompile("(?m)^" + line + "$")
	for end := time.Now().Add(deadline); !r.MatchString(page(url)); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not show %s:\n%s", url, line, regexp.MustCompile(`(?m)^(#|go_|process_).*\n`).ReplaceAllString(page(url), ""))
		}
	}
}

// TestMetricsOfRealProcesses: HSMs on their own and as a fleet; the numbers move
// with what is done, and the pages end with the process.
func TestMetricsOfRealProcesses(t *testing.T) {
	t.Parallel()
	c := createCluster(t, newMachine(t), "east", 3)
	var urls []string
	for i := range 3 {
		p := c.start(t, "hsm", "serve", c.hsmDir(i), "--metrics", ":0")
		c.hsms = append(c.hsms, p)
		line := <-p.ready
		url := metricsURL.FindString(line)
		if !strings.HasPrefix(line, "ready: ") || url == "" {
			t.Fatalf("ready line %q: %s", line, p.stderr.String())
		}
		urls = append(urls, url)
	}
	c.createUser(t, alicePIN)
	shows(t, urls[0], `hsm_keys_token_occupied\{.*\} 0`)
	c.generate(t, "first")
	for _, url := range urls {
		shows(t, url, `hsm_keys_token_occupied\{.*\} 1`)
		shows(t, url, `hsmbackup_keys_under_replicated\{.*\} 0`)
		shows(t, url, `hsmbackup_operations_total\{.*code="ok".*operation="Commit"\} 1`)
		shows(t, url, `hsmbackup_build_info\{version=".+"\} 1`)
		shows(t, strings.TrimSuffix(url, "metrics")+"readyz", `\{"ready":true,.*\}`)
	}
	// What counts as missing at an HSM that does not answer is what is new since the
	// last round with it. So a whole round has to pass after the first key: without
	// one all that there is counts.
	third := ""
	for _, h := range c.info(t).HSMs { // ordered by id
		if h.Name == "hsm-3" {
			third = h.ID
		}
	}
	synced := regexp.MustCompile(`(?m)^hsmbackup_sync_rounds_total\{.*peer="` + third + `".*result="(equal|pulled)"\} (\d+)`)
	rounds := func() (n int) {
		for _, m := range synced.FindAllStringSubmatch(page(urls[0]), -1) {
			k, err := strconv.Atoi(m[2])
			must(t, err)
			n += k
		}
		return n
	}
	before := rounds() // one may have begun before the key was made, the next has not
	eventually(t, "no round of sync with the third HSM", func() bool { return rounds() >= before+2 })
	c.hsms[2].kill()
	c.generate(t, "with two copies")
	shows(t, urls[0], `hsmbackup_keys_under_replicated\{.*\} 1`)
	shows(t, urls[0], `hsmbackup_sync_peer_keys_missing\{.*peer="`+third+`"\} 1`)
	shows(t, urls[0], `hsmbackup_sync_rounds_total\{.*peer="`+third+`".*result="failed"\} [1-9].*`)
	if page(urls[2]) != "" {
		t.Error("a killed process shows metrics")
	}
}

func TestMetricsOfAFleet(t *testing.T) {
	t.Parallel()
	c := createCluster(t, newMachine(t), "east", 2)
	p := c.start(t, "cluster", "start", c.dir, "--metrics", "127.0.0.1:0")
	p.waitReady(t)
	logged := regexp.MustCompile(`metrics are shown.* address=(127\.0\.0\.1:\d+)`)
	var addresses []string
	for end := time.Now().Add(deadline); len(addresses) < 2; time.Sleep(20 * time.Millisecond) {
		addresses = nil
		for _, m := range logged.FindAllStringSubmatch(p.stderr.String(), -1) {
			addresses = append(addresses, m[1])
		}
		if time.Now().After(end) {
			t.Fatalf("the HSMs do not log where their metrics are: %s", p.stderr.String())
		}
	}
	for _, a := range addresses {
		shows(t, "http://"+a+"/metrics", `hsm_keys_token_occupied\{.*\} 0`)
	}
}

func TestMetricsAddressesRefused(t *testing.T) {
	t.Parallel()
	c := createCluster(t, newMachine(t), "east", 1)
	for _, address := range []string{"9100", ""} {
		c.nobody().refused(t, 2, "usage", "hsm", "serve", c.hsmDir(0), "--metrics", address)
		c.nobody().refused(t, 2, "usage", "cluster", "start", c.dir, "--metrics", address)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	c.nobody().refused(t, 1, "metrics_address", "hsm", "serve", c.hsmDir(0), "--metrics", taken.Addr().String())
}
