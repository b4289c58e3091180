package soft

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

const stripes = 4096

// refLocks are striped locks: two objects may share one. Whoever needs several
// takes them in one call. The version of each is odd while it is write-locked and
// grows with every write lock, so that what was read without a lock can be known
// to hold still.
type refLocks [stripes]struct {
	sync.RWMutex
	version atomic.Uint64
}

func stripe(s hsm.Scope, r hsm.KeyRef) int {
	return int((uint64(r) ^ uint64(r)>>32 + uint64(s)*stripes/2) % stripes)
}

// lock locks the stripes of all refs, in ascending order so that nobody waits
// in a circle.
func (l *refLocks) lock(s hsm.Scope, refs ...hsm.KeyRef) (unlock func()) {
	of := make([]int, len(refs))
	for i, r := range refs {
		of[i] = stripe(s, r)
	}
	slices.Sort(of)
	of = slices.Compact(of)
	for _, i := range of {
		l[i].Lock()
		l[i].version.Add(1)
	}
	return func() {
		for _, i := range of {
			l[i].version.Add(1)
			l[i].Unlock()
		}
	}
}

func (l *refLocks) rlock(s hsm.Scope, r hsm.KeyRef) (unlock func()) {
	m := &l[stripe(s, r)]
	m.RLock()
	return m.RUnlock
}

// version begins a read without a lock.
func (l *refLocks) version(s hsm.Scope, r hsm.KeyRef) uint64 { return l[stripe(s, r)].version.Load() }

// unchanged tells whoever holds the write lock of a reference whether nobody
// else has held it since version returned v, nor held it then.
func (l *refLocks) unchanged(s hsm.Scope, r hsm.KeyRef, v uint64) bool {
	return v%2 == 0 && l[stripe(s, r)].version.Load() == v+1
}
