package figures

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// filled is a spec of a cluster that holds n AES keys from the beginning.
func filled(tb testing.TB, dir string, n int) server.Spec {
	tb.Helper()
	s := spec(dir)
	if n == 0 {
		return s
	}
	keyring := hsm.NewKeyring()
	ca, err := pki.NewAuthority(keyring.Lineage())
	if err != nil {
		tb.Fatal(err)
	}
	s.Keyring, s.CA = keyring, ca.PEM()
	s.Fill = func(ctx context.Context, into hsm.Session) error {
		loader, ok := into.(hsm.Loader)
		if !ok {
			return fmt.Errorf("the HSM cannot be loaded")
		}
		_, err := loader.Load(ctx, "", []iter.Seq2[hsm.MaskedObject, error]{ascending(keyring, n)})
		return err
	}
	return s
}

// ascending makes n AES keys in ascending order of reference.
func ascending(k *hsm.Keyring, n int) iter.Seq2[hsm.MaskedObject, error] {
	clock := hsm.NewClock(hsm.NewHSMID(), time.Now)
	return func(yield func(hsm.MaskedObject, error) bool) {
		for i := range n {
			step := (uint64(1) << 62) / uint64(n)
			ref := hsm.KeyRef(uint64(1)<<62 + uint64(i)*step + uint64(hsm.NewKeyRef())%step)
			m, err := aesKey(k, clock, ref)
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

func aesKey(k *hsm.Keyring, clock *hsm.Clock, ref hsm.KeyRef) (hsm.MaskedObject, error) {
	material := make([]byte, 32)
	rand.Read(material)
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref, Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{}, Material: hsm.NewSecret(material),
		Core: hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: len(material), Origin: hsm.MethodGenerate, Created: clock.Next(), Owner: "alice", SensitiveAtBirth: true},
	}
	r.Set(hsm.AttributeRegister("label"), []byte("figures"), clock.Next())
	var err error
	if r.Birth, err = k.Birth(r); err != nil {
		return hsm.MaskedObject{}, err
	}
	return k.Mask(r)
}

// watchedFleet starts a cluster whose HSMs show metrics, and returns where.
func watchedFleet(tb testing.TB, s server.Spec) (*profile.Profile, *server.Fleet, []string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	// The next ports are most likely free, too; if not, the fleet says so.
	p, fleet := startFleet(tb, s, server.WithMetrics(fmt.Sprintf("127.0.0.1:%d", port)))
	var urls []string
	for i := range p.HSMs {
		urls = append(urls, fmt.Sprintf("http://127.0.0.1:%d/metrics", port+i))
	}
	return p, fleet, urls
}

// scrape adds up a metric over the series that have a text in their labels.
func scrape(tb testing.TB, url, name, label string) (sum float64) {
	tb.Helper()
	reply, err := http.Get(url)
	if err != nil {
		tb.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, labels, _ := strings.Cut(series, "{"); n != name || !strings.Contains(labels, label) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			tb.Fatal(err)
		}
		sum += v
	}
	return sum
}

func total(tb testing.TB, urls []string, name, label string) (sum float64) {
	for _, url := range urls {
		sum += scrape(tb, url, name, label)
	}
	return sum
}

// session is one with an HSM, with the rights of the appliance.
func session(tb testing.TB, p *profile.Profile, i int) hsm.Session {
	tb.Helper()
	cred, err := pki.LoadIdentityFile(p.AppliancePath())
	if err != nil {
		tb.Fatal(err)
	}
	cfg, err := cred.ClientConfig()
	if err != nil {
		tb.Fatal(err)
	}
	m, err := rpc.Dial(tb.Context(), p.HSMs[i].Address, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	s, err := m.Session(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// until waits for what must come about, and returns how long it took.
func until(tb testing.TB, what string, is func() bool) time.Duration {
	tb.Helper()
	began := time.Now()
	for !is() {
		if time.Since(began) > 10*time.Minute {
			tb.Fatal(what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(began)
}

// idleTime is how long a cluster in sync is watched.
const idleTime = 30 * time.Second

// BenchmarkInSync watches three HSMs that hold the same keys and have nothing to
// do: what server-side sync sends, and what CPU time the processes take. An HSM
// has two peers and asks each once a second; the limit is a root of 40 bytes in a
// TLS record of 22 for each question and each answer. With no keys at all the CPU
// time is that of everything else.
func BenchmarkInSync(b *testing.B) {
	for _, n := range []int{0, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			_, fleet, urls := watchedFleet(b, filled(b, filepath.Join(b.TempDir(), "cluster"), n))
			rounds := func() float64 { return total(b, urls, "hsmbackup_sync_rounds_total", `result="equal"`) }
			octets := func() float64 { return total(b, urls, "hsm_interface_octets_output_total", "") }
			until(b, "the HSMs do not get in sync", func() bool { return rounds() >= 12 })
			b.ResetTimer()
			for range b.N {
				r, o, cpu, began := rounds(), octets(), cpuTime(b, fleet.PIDs()...), time.Now()
				time.Sleep(idleTime)
				minutes := time.Since(began).Minutes() * 3 // of one HSM
				r = rounds() - r
				b.ReportMetric((octets()-o)/minutes, "bytes-sent/HSM/min")
				b.ReportMetric(r/minutes, "rounds/HSM/min")
				b.ReportMetric(2*r*(40+22)/minutes, "limit-bytes-sent/HSM/min")
				b.ReportMetric((cpuTime(b, fleet.PIDs()...)-cpu).Seconds()/minutes, "cpu-s/HSM/min")
			}
		})
	}
}

// missed is how many keys an HSM misses while it stands still.
const missed = 10_000

// BenchmarkConverge stops one of three HSMs, makes keys on the others, lets it go
// on, and waits for equal roots. The limit is the transfer of these keys alone,
// from one HSM over the wire, by somebody who knows which they are.
func BenchmarkConverge(b *testing.B) {
	p, fleet := startFleet(b, spec(filepath.Join(b.TempDir(), "cluster")))
	c := alice(b, p)
	one, late := session(b, p, 0), fleet.PIDs()[2]
	root := func(s hsm.Session) hsm.Root {
		i, err := s.Info(b.Context())
		if err != nil {
			return hsm.Root{}
		}
		return i.Root
	}
	for range b.N {
		if err := syscall.Kill(late, syscall.SIGSTOP); err != nil {
			b.Fatal(err)
		}
		refs := create(b, c, missed)
		want := root(one)
		if err := syscall.Kill(late, syscall.SIGCONT); err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		last := session(b, p, 2)
		until(b, "the HSMs do not converge", func() bool { return root(last) == want })
		b.ReportMetric(time.Since(began).Seconds(), "s-to-equal-roots")
		began = time.Now()
		got := 0
		for _, err := range one.Extract(b.Context(), slices.Values(refs)) {
			if err != nil {
				b.Fatal(err)
			}
			got++
		}
		if got != missed {
			b.Fatalf("%d keys of %d", got, missed)
		}
		b.ReportMetric(time.Since(began).Seconds(), "limit-s-transfer")
	}
}

// create makes n AES keys, 64 at a time.
func create(b *testing.B, c *cluster.Cluster, n int) []hsm.KeyRef {
	b.Helper()
	request := hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"label": "missed"}}
	refs := make([]hsm.KeyRef, n)
	var all sync.WaitGroup
	for caller := range 64 {
		all.Go(func() {
			for i := caller; i < n; i += 64 {
				made, err := c.Create(b.Context(), request, cluster.Policy{})
				if err != nil {
					b.Error(err)
					return
				}
				refs[i] = made.Keys[0].Ref
			}
		})
	}
	all.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return refs
}
