package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// box is one HSM: its disk, and the process while it runs.
type box struct {
	w      *world
	region *region
	name   string
	member hsm.Member
	skew   atomic.Int64 // how far its clock is off

	mu       sync.Mutex
	life     int // counts starts
	soft     *soft.HSM
	eye      hsm.Session // the checker's, past the network
	disk     *disk       // of the present life
	image    *vfs.MemFS  // what is on the disk while the HSM is down
	old      *vfs.MemFS  // an older image of the disk
	stopSync context.CancelFunc
	end      *endpoint   // as a caller of its peers
	gone     atomic.Bool // lost for good
	replaced bool        // and another has taken its place

	known known // what the checker saw on it last
}

func (b *box) now() time.Time { return time.Now().Add(time.Duration(b.skew.Load())) }

// running returns the process, and which one it is. Nil: it is down.
func (b *box) running() (*soft.HSM, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.soft, b.life
}

func (b *box) alive(life int) bool {
	h, now := b.running()
	return h != nil && now == life
}

// start starts the HSM on what is on its disk. It may lose power as it starts.
func (b *box) start(fuse int) {
	time.Sleep(b.w.dice("start", b.name, fmt.Sprint(b.life)).between(0, time.Millisecond)) // no two at one instant
	d, life := b.powerOn(fuse)
	if d == nil {
		return
	}
	h, err := soft.Open(soft.Options{
		Dir: storeDir, FS: d, ID: b.member.ID, Cluster: b.region.id, ClusterName: b.region.name, Region: b.region.name, Zone: b.member.Zone,
		Version: "sim", Keyring: b.w.keyring, Now: b.now, Iterations: 1,
	})
	if err != nil {
		if !d.dead.Load() {
			b.w.violate("%s does not start: %v", b.name, err)
			b.crash(d, "it does not start")
		}
		return
	}
	end, ctx, ok := b.up(d, life, h)
	if !ok {
		b.w.background(func() { _ = h.Close() }) // it lost power as it started
		return
	}
	b.w.trace.add("%s starts, life %d", b.name, life)
	b.w.background(func() { b.sync(ctx, h, end) })
	b.w.checker.look(b)
	time.Sleep(time.Microsecond) // server-side sync has begun before anything else happens
}

func (b *box) powerOn(fuse int) (*disk, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil || b.gone.Load() {
		return nil, 0
	}
	b.life++
	b.disk = &disk{MemFS: b.image, b: b, unsafe: b.w.plant == skipSync}
	b.disk.fuse.Store(int64(fuse))
	return b.disk, b.life
}

// up notes that the HSM has started.
func (b *box) up(d *disk, life int, h *soft.HSM) (*endpoint, context.Context, bool) {
	eye, err := h.Module(hsm.Principal{Role: hsm.RoleHSM, Name: b.member.ID.String()}).Session(context.Background())
	if err != nil {
		b.w.violate("%s: %v", b.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.dead.Load() {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.soft, b.eye, b.stopSync = h, eye, cancel
	b.end = newEndpoint(fmt.Sprintf("%s.%d", b.name, life), hsm.Principal{Role: hsm.RoleHSM, Name: b.member.ID.String()})
	return b.end, ctx, true
}

// sync is server-side sync, until the HSM dies or learns that it was removed.
func (b *box) sync(ctx context.Context, h *soft.HSM, end *endpoint) {
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) { return b.w.net.dial(end, m) }
	err := server.Sync(ctx, h, b.member.ID, dial, time.Second, slog.New(slog.DiscardHandler))
	if ctx.Err() == nil && !errors.Is(err, hsm.ErrDenied) {
		b.w.violate("%s: server-side sync ends: %v", b.name, err)
	}
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
	image, err := powerLoss(d.MemFS, func(file string) *dice { return b.w.dice("power loss", b.name, life, file) })
	d.dead.Store(true)
	h, stop, end := b.soft, b.stopSync, b.end
	b.soft, b.eye, b.disk, b.stopSync, b.end, b.image = nil, nil, nil, nil, nil, image
	b.mu.Unlock()
	b.w.trace.add("%s crashes %s", b.name, why)
	if err != nil {
		b.w.violate("%s: %v", b.name, err)
	}
	if h == nil {
		return // whoever starts it sees to the rest
	}
	end.die() // first: nothing that sync says as it ends is heard
	stop()
	b.w.background(func() { _ = h.Close() })
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
	b.image, b.old = b.old, nil
	b.mu.Unlock()
	b.w.trace.add("%s gets an old image of its disk back", b.name)
	b.w.checker.rolledBack(b)
	return true
}
