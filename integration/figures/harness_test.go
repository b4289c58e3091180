package figures

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// built is the folder of the binary, once a benchmark has asked for it.
var built string

// binary builds the real command once a run.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hsmbackup-figures-")
	if err != nil {
		return "", err
	}
	built = dir
	path := filepath.Join(dir, "hsmbackup")
	out, err := exec.Command("go", "build", "-o", path, "github.com/hsmbackup/hsmbackup/cmd/hsmbackup").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

func mustBinary(tb testing.TB) string {
	tb.Helper()
	path, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// spec is a cluster of three HSMs whose policy is two copies.
func spec(dir string) server.Spec {
	return server.Spec{
		Name: "figures", Region: "here", Dir: dir, HSMs: 3, MinCopies: 2, CheckOnUse: true, SealEnvelope: backup.SealEnvelope,
		Admin: "root", Password: hsm.NewSecret([]byte("correct-horse")), Iterations: 1000,
	}
}

// start lays out a cluster, starts its processes, and ends them with the
// benchmark.
func start(tb testing.TB, s server.Spec) *profile.Profile {
	tb.Helper()
	p, _ := startFleet(tb, s)
	return p
}

// startFleet is start for those who look at the processes.
func startFleet(tb testing.TB, s server.Spec, opts ...server.FleetOption) (*profile.Profile, *server.Fleet) {
	tb.Helper()
	p, err := server.Create(tb.Context(), s)
	if err != nil {
		tb.Fatal(err)
	}
	fleet, err := server.StartFleet(context.Background(), mustBinary(tb), p, io.Discard, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(fleet.Stop)
	return p, fleet
}

func login(tb testing.TB, p *profile.Profile, role hsm.Role, name, password string) *cluster.Cluster {
	tb.Helper()
	c, err := cluster.Open(tb.Context(), p, cluster.Credential{Role: role, Name: name, Password: hsm.NewSecret([]byte(password))})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// alice makes a crypto user and logs her in.
func alice(tb testing.TB, p *profile.Profile) *cluster.Cluster {
	tb.Helper()
	root := login(tb, p, hsm.RoleAdmin, "root", "correct-horse")
	change := hsm.Change{Kind: hsm.ChangeUserCreate, User: "alice", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte("wonderland"))}
	if _, err := root.Change(tb.Context(), change); err != nil {
		tb.Fatal(err)
	}
	return login(tb, p, hsm.RoleCryptoUser, "alice", "wonderland")
}

// usage is what runs of the command took.
type usage struct {
	stdout []byte // of the last one
	peak   int64  // bytes of memory, the most of any
	cpu    time.Duration
	runs   int
}

func (u *usage) add(v usage) {
	u.peak, u.cpu, u.runs = max(u.peak, v.peak), u.cpu+v.cpu, u.runs+1
}

func (u *usage) report(b *testing.B) {
	b.ReportMetric(float64(u.peak)/(1<<20), "peak-MiB")
	b.ReportMetric(u.cpu.Seconds()/float64(max(u.runs, 1)), "cpu-s")
}

// measure runs the real binary. (The rusage of a child counts memory that its
// parent held when it forked, so the high-water mark is read while the child runs.)
func measure(tb testing.TB, args ...string) usage {
	tb.Helper()
	return measureCommand(tb, exec.Command(mustBinary(tb), args...))
}

func measureCommand(tb testing.TB, cmd *exec.Cmd) usage {
	tb.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan int64)
	go func() { done <- watchMemory(cmd.Process.Pid, stop) }()
	err := cmd.Wait()
	close(stop)
	u := usage{stdout: out.Bytes(), peak: <-done, cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if err != nil {
		tb.Fatalf("%v: %v\n%s%s", cmd.Args, err, out.String(), errOut.String())
	}
	return u
}

// watchMemory reads a process's high-water mark until stop.
func watchMemory(pid int, stop <-chan struct{}) (peak int64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return peak
		case <-tick.C:
			peak = max(peak, highWater(pid))
		}
	}
}

func highWater(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it has ended
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib, err := strconv.ParseInt(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}
