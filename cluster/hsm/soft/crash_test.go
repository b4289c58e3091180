package soft

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ledger is what an HSM has acknowledged.
type ledger struct {
	mu          sync.Mutex
	live        map[hsm.KeyRef]bool
	destroyed   map[hsm.KeyRef]bool
	provisional map[hsm.KeyRef]bool // prepared and never committed
}

func newLedger() *ledger {
	return &ledger{live: map[hsm.KeyRef]bool{}, destroyed: map[hsm.KeyRef]bool{}, provisional: map[hsm.KeyRef]bool{}}
}

func (l *ledger) note(what string, ref hsm.KeyRef) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch what {
	case "created":
		l.live[ref] = true
	case "destroyed":
		l.destroyed[ref] = true
	case "provisional":
		l.provisional[ref] = true
	}
}

func (l *ledger) copy() *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &ledger{live: maps.Clone(l.live), destroyed: maps.Clone(l.destroyed), provisional: maps.Clone(l.provisional)}
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.live)
}

// writeUntil creates keys until it fails or the context ends: of four, one is
// destroyed again, and one stays provisional. note is told what the HSM
// acknowledged.
func writeUntil(ctx context.Context, s hsm.Session, note func(what string, ref hsm.KeyRef)) error {
	for i := 0; ctx.Err() == nil; i++ {
		op := randomOp()
		made, err := s.Create(ctx, op, aesRequest)
		if err != nil {
			return err
		}
		ref := made.Keys[0].Ref
		if i%4 == 3 {
			note("provisional", ref)
			continue
		}
		if err := s.Commit(ctx, op); err != nil {
			return err
		}
		note("created", ref)
		if i%4 == 2 {
			if _, err := s.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref}); err != nil {
				return err
			}
			note("destroyed", ref)
		}
	}
	return nil
}

// slow leaves room for the other half of the test.
func slow(note func(string, hsm.KeyRef)) func(string, hsm.KeyRef) {
	return func(what string, ref hsm.KeyRef) {
		note(what, ref)
		time.Sleep(2 * time.Millisecond)
	}
}

// checkLedger checks that an HSM opened after a crash has all that was
// acknowledged before it.
func checkLedger(t *testing.T, h *HSM, l *ledger) {
	t.Helper()
	for ref := range l.live {
		cur := must[*held](t)(h.read(hsm.ScopeLineage, ref))
		switch {
		case cur == nil:
			t.Errorf("acknowledged key %s is lost", ref)
		case l.destroyed[ref] && !cur.obj.Tombstone:
			t.Errorf("destroyed key %s is back", ref)
		}
	}
	for ref := range l.provisional {
		if cur := must[*held](t)(h.read(hsm.ScopeLineage, ref)); cur != nil {
			t.Errorf("provisional key %s is visible", ref)
		}
		if p := h.ops.holding(hsm.ScopeLineage, ref); p != nil {
			t.Errorf("key %s is provisional after a crash", ref)
		}
	}
	checkStore(t, h)
}

// TestCrash takes what a power loss would leave of the disk, at random moments
// under load, with none, some or all of what was not synced.
func TestCrash(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := testOptions(fs)
	h := withUser(t, open(t, o))
	ctx, cancel := context.WithCancel(t.Context())
	l := newLedger()
	var wg sync.WaitGroup
	for range 4 {
		s := login(t, h, "alice")
		wg.Go(func() {
			defer cancel() // if one fails, all end
			if err := writeUntil(ctx, s, slow(l.note)); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	seed := mathrand.Uint64()
	random := mathrand.New(mathrand.NewPCG(seed, seed))
	for i := range 4 {
		for l.size() < 40*(i+1) && ctx.Err() == nil {
			time.Sleep(time.Millisecond) // while the others write
		}
		before := l.copy()
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[i%3], RNG: random})
		again := o
		again.FS = crashed
		h := open(t, again)
		checkLedger(t, h, before)
		if t.Failed() {
			t.Fatalf("crash %d of seed %d, after %d keys", i, seed, len(before.live))
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
	checkStore(t, h)
}

// The child of TestKill finds the folder to write to here.
const killDir = "HSM_TEST_KILL_DIR"

// killOptions are the same in parent and child.
func killOptions(t testing.TB, dir string) Options {
	secret, masking := bytes.Repeat([]byte{1}, hsm.KeySize), bytes.Repeat([]byte{2}, hsm.KeySize)
	k := must[*hsm.Keyring](t)(hsm.OpenKeyring(hsm.NewSecret(secret), map[uint64]hsm.Secret{1: hsm.NewSecret(masking)}))
	return Options{Dir: dir, ID: 1, Cluster: 1, Keyring: k, Iterations: 1}
}

// TestKill kills a process that writes with eight goroutines, twice, and opens
// what it leaves.
func TestKill(t *testing.T) {
	if dir := os.Getenv(killDir); dir != "" {
		killMe(t, dir)
		return
	}
	dir := filepath.Join(t.TempDir(), "store")
	l := newLedger()
	for range 2 {
		killChild(t, dir, l, 300)
		h := open(t, killOptions(t, dir))
		checkLedger(t, h, l)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killMe writes until it is killed and prints what was acknowledged.
func killMe(t *testing.T, dir string) {
	h := must[*HSM](t)(Open(killOptions(t, dir)))
	if len(h.users.list()) == 0 {
		withUser(t, h)
	}
	var mu sync.Mutex
	note := func(what string, ref hsm.KeyRef) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf("%s %s\n", what, ref)
	}
	var wg sync.WaitGroup
	for range 8 {
		s := login(t, h, "alice")
		wg.Go(func() { t.Error(writeUntil(t.Context(), s, note)) })
	}
	wg.Wait()
}

// killChild runs the child, kills it after some acknowledgements, and notes all
// that came through before it died.
func killChild(t *testing.T, dir string, l *ledger, after int) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestKill$", "-test.timeout=60s")
	child.Env = append(os.Environ(), killDir+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break // a last line cut short was not acknowledged to anyone
		}
		if err != nil {
			t.Fatal(err)
		}
		what, text, ok := strings.Cut(strings.TrimSpace(line), " ")
		ref, err := hsm.ParseKeyRef(text)
		if !ok || err != nil {
			t.Fatalf("the child says %q", line)
		}
		l.note(what, ref)
		if n++; n == after {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = child.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended by itself: %v", err)
	}
}
