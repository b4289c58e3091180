package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
)

// watched starts the HSM with metrics; it must be down.
func (b *box) watched() { b.watchedAt(time.Now) }

func (b *box) watchedAt(now func() time.Time) {
	b.w.t.Helper()
	o := b.options()
	o.Metrics, o.Now = ":0", now
	s, err := Open(b.w.t.Context(), b.folder, o)
	if err != nil {
		b.w.t.Fatal(err)
	}
	s.fresh = 10 * testInterval
	b.serve(s)
}

// newWatchedWorld is a cluster whose HSMs show metrics.
func newWatchedWorld(t *testing.T, hsms int) *world {
	t.Helper()
	w := newWorld(t, hsms)
	for _, b := range w.boxes {
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		b.watched()
	}
	return w
}

func (b *box) page(path string) (status int, body string) {
	b.w.t.Helper()
	reply, err := http.Get("http://" + b.server.MetricsAddress() + path)
	if err != nil {
		b.w.t.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return reply.StatusCode, string(text)
}

// value adds up the series of a metric that have all these labels
// (name="value"), and tells whether there are any.
func (b *box) value(name string, labels ...string) (sum float64, any bool) {
	b.w.t.Helper()
	_, text := b.page("/metrics")
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, _, _ := strings.Cut(series, "{"); n != name {
			continue
		}
		if slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(series, l) }) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			b.w.t.Fatalf("%s: %v", line, err)
		}
		sum, any = sum+v, true
	}
	return sum, any
}

// becomes waits until a metric satisfies is.
func (b *box) becomes(is func(float64) bool, name string, labels ...string) {
	b.w.t.Helper()
	b.w.eventually(name+" does not become what it should", func() bool {
		v, any := b.value(name, labels...)
		return any && is(v)
	})
}

func equals(want float64) func(float64) bool { return func(v float64) bool { return v == want } }
func positive(v float64) bool                { return v > 0 }

func TestMetricsMove(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 2)
	w.createAlice()
	one, two := w.boxes[0], w.boxes[1]
	alice := one.alice()
	one.becomes(equals(0), "hsm_keys_token_occupied")
	one.becomes(equals(1022), "hsm_users_available")
	w.createKey(alice, "first")
	session := aesRequest("short-lived")
	session.Token = false
	if _, err := alice.Create(t.Context(), newOp(), session); err != nil {
		t.Fatal(err)
	}
	one.becomes(equals(1), "hsm_keys_token_occupied", `hsm="`+one.id().String()+`"`)
	one.becomes(equals(1), "hsm_keys_session_occupied")
	one.becomes(equals(2), "hsmbackup_operations_total", `operation="Create"`, `code="ok"`)
	one.becomes(equals(2), "hsmbackup_operation_seconds_count", `operation="Create"`)
	one.becomes(positive, "hsm_session_count")
	one.becomes(positive, "hsm_interface_octets_input_total")
	one.becomes(positive, "hsm_interface_octets_output_total")
	one.becomes(positive, "hsm_ssl_ctxs_occupied")
	one.becomes(positive, "hsmbackup_audit_entries_total")
	one.becomes(equals(1), "hsmbackup_audit_writable")

	two.becomes(equals(1), "hsm_keys_token_occupied") // it pulls what was made on the other
	two.becomes(positive, "hsmbackup_sync_objects_total", `result="added"`)
	two.becomes(positive, "hsmbackup_sync_bytes_total", `part="objects"`)
	two.becomes(positive, "hsmbackup_sync_bytes_total", `part="sketch"`)
	two.becomes(positive, "hsmbackup_sync_rounds_total", `result="equal"`)
	one.becomes(equals(0), "hsmbackup_keys_under_replicated")
	one.becomes(func(v float64) bool { return v < 60 }, "hsmbackup_sync_lag_seconds")
}

// TestUnderReplicatedKeysShow: what is made while another HSM is down lacks a
// copy there, longer and longer, until it is back.
func TestUnderReplicatedKeysShow(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 2)
	w.createAlice()
	w.rounds()
	one, two := w.boxes[0], w.boxes[1]
	one.becomes(equals(0), "hsmbackup_keys_under_replicated")
	if err := two.stop(); err != nil {
		t.Fatal(err)
	}
	one.becomes(positive, "hsmbackup_sync_rounds_total", `result="failed"`)
	alice := one.alice()
	w.createKey(alice, "a")
	w.createKey(alice, "b")
	one.becomes(equals(2), "hsmbackup_keys_under_replicated")
	one.becomes(equals(2), "hsmbackup_sync_peer_keys_missing")
	one.becomes(positive, "hsmbackup_keys_under_replicated_oldest_seconds")
	first, _ := one.value("hsmbackup_keys_under_replicated_oldest_seconds")
	one.becomes(func(v float64) bool { return v > first }, "hsmbackup_keys_under_replicated_oldest_seconds")
	two.watched()
	one.becomes(equals(0), "hsmbackup_keys_under_replicated")
	one.becomes(equals(0), "hsmbackup_keys_under_replicated_oldest_seconds")
}

// TestWhatNeverAnsweredLacksEverything: as far as an HSM knows that was started while
// another was down. When that is back the truth shows.
func TestWhatNeverAnsweredLacksEverything(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 2)
	w.createAlice()
	one, two := w.boxes[0], w.boxes[1]
	w.createKey(one.alice(), "a")
	w.converge()
	all := float64(one.info().Root.Count)
	for _, b := range w.boxes {
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	}
	one.watched()
	one.becomes(equals(all), "hsmbackup_keys_under_replicated")
	w.createKey(one.alice(), "b")
	one.becomes(equals(all+1), "hsmbackup_keys_under_replicated")
	two.watched()
	one.becomes(equals(0), "hsmbackup_keys_under_replicated")
}

func (b *box) ready() (bool, map[string]string) {
	b.w.t.Helper()
	status, body := b.page("/readyz")
	var got struct {
		Ready  bool
		Checks map[string]string
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		b.w.t.Fatal(err)
	}
	if (status == http.StatusOK) != got.Ready {
		b.w.t.Fatalf("status %d: %s", status, body)
	}
	return got.Ready, got.Checks
}

// TestReadyMeansServing: ready with a peer, not without any, ready again; not
// without an audit log. An HSM of three that is down leaves the others ready.
func TestReadyMeansServing(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 3)
	w.createAlice()
	one := w.boxes[0]
	w.eventually("not ready", func() bool { ok, _ := one.ready(); return ok })
	if err := w.boxes[1].stop(); err != nil {
		t.Fatal(err)
	}
	one.becomes(positive, "hsmbackup_sync_rounds_total", `result="failed"`)
	w.eventually("one HSM that is down makes another unready", func() bool { ok, _ := one.ready(); return ok })
	if err := w.boxes[2].stop(); err != nil {
		t.Fatal(err)
	}
	w.eventually("an HSM alone is ready", func() bool {
		ok, checks := one.ready()
		return !ok && strings.Contains(checks["sync"], "no round of sync with any other HSM") && checks["store"] == "ok" && checks["member"] == "ok"
	})
	if status, _ := one.page("/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d", status)
	}
	w.boxes[1].watched()
	w.eventually("not ready again", func() bool { ok, _ := one.ready(); return ok })
	if err := one.server.device.audit.Close(); err != nil {
		t.Fatal(err)
	}
	one.alice() // cannot be recorded
	if ok, checks := one.ready(); ok || !strings.Contains(checks["audit"], "audit log") {
		t.Errorf("without an audit log: %v %v", ok, checks)
	}
	one.becomes(equals(0), "hsmbackup_audit_writable")
	one.becomes(positive, "hsmbackup_audit_lost_total")
}

func TestAClusterOfOneIsReadyByItself(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 1)
	w.eventually("not ready", func() bool { ok, _ := w.boxes[0].ready(); return ok })
}

// TestMetricsTellNoNames: nothing that a caller named shows.
func TestMetricsTellNoNames(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 1)
	w.createAlice()
	b := w.boxes[0]
	ref := w.createKey(b.alice(), "label-of-a-key")
	for _, name := range []string{"mallory", "alice"} {
		if _, _, err := b.client().Login(t.Context(), hsm.RoleNone, name, secret("guessed-password")); err == nil {
			t.Fatal("logged in")
		}
	}
	_, text := b.page("/metrics")
	for _, s := range []string{"alice", "mallory", "label-of-a-key", ref.String(), alicePassword, "guessed-password"} {
		if strings.Contains(text, s) {
			t.Errorf("/metrics shows %q", s)
		}
	}
}

func TestCertificateExpiryShows(t *testing.T) {
	t.Parallel()
	b := newWatchedWorld(t, 1).boxes[0]
	soon := float64(time.Now().Add(time.Hour).Unix())
	for _, label := range []string{"hsm", "ca"} {
		if at, any := b.value("hsmbackup_certificate_expiry_timestamp_seconds", `certificate="`+label+`"`); !any || at < soon {
			t.Errorf("certificate %s expires at %v, %t", label, at, any)
		}
	}
}

// TestEveryMetricIsDocumented: METRICS.md lists what is shown, and nothing else.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 2)
	w.rounds()
	_, text := w.boxes[0].page("/metrics")
	doc, err := os.ReadFile("METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	var shown, listed []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (hsm\w*) `).FindAllStringSubmatch(text, -1) {
		shown = append(shown, m[1])
	}
	for _, m := range regexp.MustCompile("(?m)^\\|(?: `\\w+` \\|)? `(hsm\\w*)` \\|").FindAllSubmatch(doc, -1) {
		listed = append(listed, string(m[1]))
	}
	slices.Sort(shown)
	slices.Sort(listed)
	if !slices.Equal(shown, listed) {
		t.Errorf("shown:\n%s\nin METRICS.md:\n%s", strings.Join(shown, "\n"), strings.Join(listed, "\n"))
	}
}

func TestMetricsAddressRefused(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 1)
	b := w.boxes[0]
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	lis, err := metrics.Listen(":0", metrics.NewRegistry("v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	o := b.options()
	o.Metrics = lis.Address()
	if _, err := Open(t.Context(), b.folder, o); !errors.Is(err, metrics.ErrAddress) {
		t.Errorf("a taken address: %v", err)
	}
	config, err := os.ReadFile(b.folder + "/" + configFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.folder+"/"+configFile, append(config, "metrics: everywhere\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), b.folder, b.options()); !errors.Is(err, ErrFolder) {
		t.Errorf("a bad address in the configuration: %v", err)
	}
}

// TestReadySaysWhichState: an HSM that does not do all there is to do is not ready,
// and says why.
func TestReadySaysWhichState(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	b := w.boxes[0]
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), b.folder, b.options()) // and not served: nothing moves
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	normal := *s.place.now.Load()
	self := func(change func(m *hsm.Member)) {
		next := normal
		change(&next.self)
		s.place.now.Store(&next)
	}
	check := s.checks()[2]
	for state, set := range map[hsm.State]func(){
		hsm.StateActive:     func() {},
		hsm.StateJoining:    func() { self(func(m *hsm.Member) { m.Joining = true }) },
		hsm.StateLeaving:    func() { self(func(m *hsm.Member) { m.Leaving = true }) },
		hsm.StateCatchingUp: func() { s.sync.caught.Store(false) },
		hsm.StateDuplicate:  func() { s.sync.copied.Store(time.Now().Add(time.Hour).UnixNano()) },
	} {
		s.place.now.Store(&normal)
		s.sync.caught.Store(true)
		s.sync.copied.Store(0)
		set()
		switch err := check.Run(t.Context()); {
		case (err == nil) != (state == hsm.StateActive):
			t.Errorf("%s: ready: %v", state, err)
		case err != nil && !strings.Contains(err.Error(), string(state)):
			t.Errorf("%s: %v", state, err)
		}
	}
}
