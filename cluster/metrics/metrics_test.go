package metrics_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/metrics"
)

// serve serves r for the test and returns the URL.
func serve(t *testing.T, r *metrics.Registry, checks ...metrics.Check) string {
	t.Helper()
	s, err := metrics.Listen(":0", r, checks...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return "http://" + s.Address()
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	reply, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	b, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply.StatusCode, string(b)
}

// lines returns the lines of /metrics that begin with prefix.
func lines(t *testing.T, url, prefix string) (out []string) {
	t.Helper()
	status, body := get(t, url+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("/metrics: %d %s", status, body)
	}
	for l := range strings.Lines(body) {
		if strings.HasPrefix(l, prefix) {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}

func TestMetricsShowWhatWasSetAndWhatIsRead(t *testing.T) {
	r := metrics.NewRegistry("v1")
	r.Gauge("x_gauge", "A gauge.", "peer").Set(2.5, "a")
	c := r.Counter("x_things_total", "A counter.")
	c.Add(1)
	c.Add(2)
	r.Histogram("x_seconds", "A histogram.", []float64{1, 2}, "operation").Observe(1.5, "Use")
	r.Collect([]metrics.Desc{{Name: "x_read", Help: "Read."}, {Name: "x_read_total", Help: "Read.", Counter: true, Labels: []string{"peer"}}},
		func(set func(string, float64, ...string)) { set("x_read", 7); set("x_read_total", 8, "b") })
	r.With(map[string]string{"hsm": "h"}).Gauge("x_with", "A gauge.", "peer").Set(1, "a")
	url := serve(t, r)
	want := []string{
		`x_gauge{peer="a"} 2.5`, `x_read 7`, `x_read_total{peer="b"} 8`,
		`x_seconds_bucket{operation="Use",le="1"} 0`, `x_seconds_bucket{operation="Use",le="2"} 1`, `x_seconds_bucket{operation="Use",le="+Inf"} 1`,
		`x_seconds_sum{operation="Use"} 1.5`, `x_seconds_count{operation="Use"} 1`, `x_things_total 3`, `x_with{hsm="h",peer="a"} 1`,
	}
	if diff := cmp.Diff(want, lines(t, url, "x_")); diff != "" {
		t.Error(diff)
	}
	if got := lines(t, url, "hsmbackup_build_info"); len(got) != 1 || got[0] != `hsmbackup_build_info{version="v1"} 1` {
		t.Error(got)
	}
	if len(lines(t, url, "process_cpu_seconds_total")) != 1 {
		t.Error("no CPU time of the process")
	}
}

func TestLabelsAreBounded(t *testing.T) {
	r := metrics.NewRegistry("v1")
	c := r.Counter("x_total", "A counter.", "who")
	r.Collect([]metrics.Desc{{Name: "y", Help: "Read.", Labels: []string{"who"}}}, func(set func(string, float64, ...string)) {
		for i := range 3 * metrics.MaxSeries {
			set("y", 1, fmt.Sprint(i))
		}
	})
	const callers = 3 * metrics.MaxSeries
	for i := range callers {
		c.Add(1, fmt.Sprint(i))
	}
	c.Add(1, "5")
	url := serve(t, r)
	got := lines(t, url, "x_total")
	if len(got) != metrics.MaxSeries+1 {
		t.Errorf("%d series, want %d and one for the others", len(got), metrics.MaxSeries)
	}
	if want := fmt.Sprintf(`x_total{who="other"} %d`, callers-metrics.MaxSeries); !strings.Contains(strings.Join(got, "\n"), want) {
		t.Errorf("want %s", want)
	}
	if n := len(lines(t, url, "y{")); n != metrics.MaxSeries {
		t.Errorf("%d series of a collector, want %d", n, metrics.MaxSeries)
	}
}

func TestLabelsOfAnyBytesAreShown(t *testing.T) {
	r := metrics.NewRegistry("v1")
	r.Counter("x_total", "A counter.", "who").Add(1, "a\xff\n\"b"+strings.Repeat("x", 1000))
	got := lines(t, serve(t, r), "x_total")
	if len(got) != 1 || !strings.HasPrefix(got[0], `x_total{who="a\n\"b`) || len(got[0]) > 200 {
		t.Error(got)
	}
}

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	var broken atomic.Bool
	url := serve(t, metrics.NewRegistry("v1"),
		metrics.Check{Name: "store", Run: func(context.Context) error { return nil }},
		metrics.Check{Name: "audit", Run: func(context.Context) error {
			if broken.Load() {
				return errors.New("disk\nfull")
			}
			return nil
		}})
	for _, c := range []struct {
		broken bool
		status int
		audit  string
	}{{false, 200, "ok"}, {true, 503, "not ok: disk full"}, {false, 200, "ok"}} {
		broken.Store(c.broken)
		status, body := get(t, url+"/readyz")
		var got struct {
			Ready  bool
			Checks map[string]string
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		if status != c.status || got.Ready == c.broken || got.Checks["audit"] != c.audit || got.Checks["store"] != "ok" {
			t.Errorf("broken %t: %d %s", c.broken, status, body)
		}
		if status, _ := get(t, url+"/healthz"); status != 200 {
			t.Errorf("/healthz: %d", status)
		}
	}
}

func TestACheckThatHangsIsNotReadyAndRunsOnce(t *testing.T) {
	var runs atomic.Int32
	release := make(chan struct{})
	defer close(release)
	url := serve(t, metrics.NewRegistry("v1"), metrics.Check{Name: "store", Run: func(context.Context) error {
		runs.Add(1)
		<-release
		return nil
	}})
	for range 2 {
		if status, body := get(t, url+"/readyz"); status != 503 || !strings.Contains(body, "no answer") {
			t.Errorf("%d %s", status, body)
		}
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("%d runs at a time", n)
	}
}

func TestStrangersGetNothing(t *testing.T) {
	url := serve(t, metrics.NewRegistry("v1"))
	request := func(method, path, host string) int {
		r, err := http.NewRequest(method, url+path, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		reply, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		reply.Body.Close()
		return reply.StatusCode
	}
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/metrics", "localhost:9100", 200},
		{"GET", "/metrics", "127.0.0.1", 200},
		{"GET", "/metrics", "[::1]:9100", 200},
		{"GET", "/metrics", "rebound.example", 403},
		{"GET", "/metrics", "localhost.rebound.example:80", 403},
		{"POST", "/metrics", "localhost", 405},
		{"DELETE", "/readyz", "localhost", 405},
		{"GET", "/debug/pprof/heap", "localhost", 404},
	} {
		if got := request(c.method, c.path, c.host); got != c.want {
			t.Errorf("%s %s as %s: %d, want %d", c.method, c.path, c.host, got, c.want)
		}
	}
}

// A caller that sends a header without end is cut off, and others are answered
// meanwhile.
func TestAnEndlessHeaderIsCutOff(t *testing.T) {
	url := serve(t, metrics.NewRegistry("v1"))
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nX: ")
		for { // until the server closes the connection
			if _, err := c.Write(make([]byte, 1024)); err != nil {
				return
			}
		}
	}()
	if status, _ := get(t, url+"/healthz"); status != 200 {
		t.Errorf("/healthz: %d", status)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.Contains(line, " 4") {
		t.Errorf("answered %q", line)
	}
}

func TestAddresses(t *testing.T) {
	for _, address := range []string{"", "9100", "127.0.0.1", "127.0.0.1:99999", ":x", "a:b:c"} {
		if _, err := metrics.Listen(address, metrics.NewRegistry("v1")); !errors.Is(err, metrics.ErrAddress) {
			t.Errorf("%q: %v", address, err)
		}
	}
	s, err := metrics.Listen(":0", metrics.NewRegistry("v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Local() || !strings.HasPrefix(s.Address(), "127.0.0.1:") {
		t.Errorf("an address without a host listens at %s", s.Address())
	}
	if err := metrics.Serve(context.Background(), s.Address(), metrics.NewRegistry("v1")); !errors.Is(err, metrics.ErrAddress) {
		t.Errorf("a taken address: %v", err)
	}
	open, err := metrics.Listen("0.0.0.0:0", metrics.NewRegistry("v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if open.Local() {
		t.Error("0.0.0.0 counts as local")
	}
}
