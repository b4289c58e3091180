package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// box is one HSM: its folder, the disk with its object store, and the process while it
// runs.
type box struct {
	w      *world
	region *region
	name   string
	skew   atomic.Int64 // how far its clock is off
	said   atomic.Pointer[hsm.Member]

	mu       sync.Mutex
	life     int    // counts starts
	folder   string // that of the present life
	sub      string // where in it the HSM is
	server   process
	soft     *soft.HSM   // the server's
	eye      hsm.Session // the checker's, past the network
	disk     *disk       // of the present life
	image    *vfs.MemFS  // what is on the disk while the HSM is down
	old      *vfs.MemFS  // an older image of the disk
	audit    *auditLog   // of the present life
	knows    []string    // revocations that it alone knew of at first
	stopSync context.CancelFunc
	end      *endpoint   // as a caller of its peers
	conns    []*conn     // of its callers
	gone     atomic.Bool // lost for good
	replaced bool        // and another has taken its place

	// What the checker knows of its place in the region.
	stage    progress
	token    hsm.Secret  // that it came with
	isCopy   bool        // of another's folder
	setBack  atomic.Bool // to an old image, once
	removal  atomic.Pointer[removal]
	expelled atomic.Int64 // since when it knows itself, as a time.Duration; 0: it does not
	must     []hsm.KeyRef // what it must hold when it has joined

	known known // what the checker saw on it last
}

// removal is what some HSM knows of the removal of another.
type removal struct {
	since   time.Duration // the checker saw that
	drained bool
}

// member is who the HSM says that it is. A joiner draws its own id.
func (b *box) member() hsm.Member { return *b.said.Load() }

// removed tells whether some HSM knows that it was removed.
func (b *box) removed() bool { return b.removal.Load() != nil }

func (b *box) now() time.Time { return time.Now().Add(time.Duration(b.skew.Load())) }

// running returns the process, and which one it is. Nil: it is down.
func (b *box) running() (process, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.server, b.life
}

func (b *box) alive(life int) bool {
	h, now := b.running()
	return h != nil && now == life
}

// lives counts how often the HSM was started.
func (b *box) lives() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.life
}

// entered is where in the folder of the box the HSM is that has joined; empty as long as
// it has not.
func (b *box) entered() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sub
}

// process is an HSM as callers reach it.
type process interface {
	Module(id pki.Identity) hsm.Module
	Admit(ctx context.Context, invite string, r rpc.JoinRequest) (rpc.JoinReply, error)
	HSM() *soft.HSM
}

// start starts the HSM on what is on its disk. It may lose power as it starts.
func (b *box) start(fuse int) {
	time.Sleep(b.w.dice("start", b.name, fmt.Sprint(b.lives())).between(0, time.Millisecond)) // no two at one instant
	d, life, folder := b.powerOn(fuse)
	if d == nil {
		return
	}
	end := newEndpoint(fmt.Sprintf("%s.%d", b.name, life), hsm.Principal{Role: hsm.RoleHSM, Name: b.member().ID.String()})
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) { return b.w.net.dial(end, m) }
	s, err := server.Open(context.Background(), folder, server.Options{
		Version: "sim", SyncInterval: time.Second, Log: b.log(), Now: b.now, Iterations: 1, FS: d, Audit: b.openAudit(),
		Network: &server.Network{Dial: dial, End: b.hangUpOn},
	})
	if err != nil {
		b.notStarted(d, err)
		return
	}
	ctx, ok := b.up(d, life, s, end)
	if !ok {
		b.w.background(func() { _ = s.Close() }) // it lost power as it started
		return
	}
	b.w.trace.add("%s starts, life %d", b.name, life)
	b.w.checker.starts(b)
	b.w.background(func() { b.serve(ctx, d, s) })
	b.w.checker.look(b)
	time.Sleep(time.Microsecond) // server-side sync has begun before anything else happens
}

// notStarted takes note of an HSM that does not start: it lost power as it did, or it
// was removed.
func (b *box) notStarted(d *disk, err error) {
	switch {
	case d.dead.Load():
	case errors.Is(err, hsm.ErrDenied):
		b.crash(d, "it was removed, and does not start")
	default:
		b.w.violate("%s does not start: %v", b.name, err)
		b.crash(d, "it does not start")
	}
}

func (b *box) powerOn(fuse int) (d *disk, life int, folder string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil || b.gone.Load() {
		return nil, 0, ""
	}
	b.life++
	b.disk = &disk{MemFS: b.image, b: b, unsafe: b.w.plant == skipSync}
	b.disk.fuse.Store(int64(fuse))
	b.audit = b.audit.copy()
	return b.disk, b.life, filepath.Join(b.folder, b.sub)
}

// up notes that the HSM has started.
func (b *box) up(d *disk, life int, s *server.Server, end *endpoint) (context.Context, bool) {
	eye, err := s.HSM().Module(hsm.Principal{Role: hsm.RoleHSM, Name: b.member().ID.String()}).Session(context.Background())
	if err != nil {
		b.w.violate("%s: %v", b.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.dead.Load() {
		return nil, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.server, b.soft, b.eye, b.stopSync, b.end = s, s.HSM(), eye, cancel, end
	if b.w.plant == forgetAfter {
		b.server = early{s}
	}
	return ctx, true
}

// serve is the HSM's process, until it dies or learns that it was removed.
func (b *box) serve(ctx context.Context, d *disk, s *server.Server) {
	err := s.Serve(ctx)
	if ctx.Err() == nil {
		if !errors.Is(err, hsm.ErrDenied) {
			b.w.violate("%s: it ends: %v", b.name, err)
		}
		if b.w.plant == keepRemoved {
			b.mu.Lock()
			b.server = zombie{s}
			b.mu.Unlock()
			<-ctx.Done()
		}
		b.crash(d, "since it was removed")
	}
	_ = s.Close()
}

// crash cuts the power: the disk keeps what a loss of power leaves of it, and
// whatever the process does from now on, nobody hears of it.
func (b *box) crash(d *disk, why string) {
	b.mu.Lock()
	if b.disk != d {
		b.mu.Unlock()
		return
	}
	life := fmt.Sprint(b.life)
	next := b.nextFolder()
	image, err := powerLoss(d.MemFS, func(file string) *dice { return b.w.dice("power loss", b.name, life, file) })
	d.dead.Store(true)
	s, stop, end := b.server, b.stopSync, b.end
	b.server, b.soft, b.eye, b.disk, b.stopSync, b.end, b.image, b.conns, b.folder = nil, nil, nil, nil, nil, nil, image, nil, next
	b.mu.Unlock()
	b.w.trace.add("%s crashes %s", b.name, why)
	if err != nil {
		b.w.violate("%s: %v", b.name, err)
	}
	if end != nil {
		end.die() // first: nothing that it says as it ends is heard
	}
	if s != nil { // otherwise whoever starts it sees to the rest
		stop()
	}
}

// nextFolder copies the folder as the power fails: whatever the process writes from
// now on is lost. What is in it is small, and on the disk before anything follows from
// it; that is for the tests of package server. b.mu is held.
func (b *box) nextFolder() string {
	to := filepath.Join(b.w.dir, fmt.Sprintf("%s.%d", b.name, b.life))
	if err := copyFolder(b.folder, to); err != nil {
		b.w.violate("%s: %v", b.name, err)
	}
	return to
}

// copyFolder copies an HSM's folder, or one in the making, with what is beside it.
func copyFolder(from, to string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	keys, err := filepath.Glob(filepath.Join(to, "*", "seal.key"))
	if err != nil {
		return err
	}
	more, err := filepath.Glob(filepath.Join(to, "seal.key"))
	for _, key := range append(keys, more...) {
		err = errors.Join(err, os.Chmod(key, 0o600))
	}
	return err
}

// kill crashes the HSM between two calls.
func (b *box) kill() {
	b.mu.Lock()
	d := b.disk
	b.mu.Unlock()
	if d != nil {
		b.crash(d, "between two calls")
	}
}

// remember keeps an image of the disk as it is, to be put back later.
func (b *box) remember() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil {
		b.old = b.disk.CrashClone(vfs.CrashCloneCfg{})
	}
}

// rollBack puts an old image of the disk back. The HSM is down afterwards.
func (b *box) rollBack() bool {
	b.mu.Lock()
	has := b.old != nil
	b.mu.Unlock()
	if !has {
		return false
	}
	b.kill()
	b.mu.Lock()
	b.image, b.old, b.knows = b.old, nil, nil
	b.mu.Unlock()
	b.setBack.Store(true)
	b.w.trace.add("%s gets an old image of its disk back", b.name)
	b.w.checker.rolledBack(b)
	return true
}
