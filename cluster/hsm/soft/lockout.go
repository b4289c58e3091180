package soft

import (
	"encoding/binary"
	"strings"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// A user's lockout is an object of the cluster: failures/HSM counts the failed
// logins at an HSM and is written by that HSM alone; base/HSM is how many of
// them have been forgiven. A user is locked when more than MaxFailedLogins are
// not forgiven, at all HSMs together as far as they have synced. Admins are
// locked like everybody; other admins unlock them, and so does an operator with
// the certificate of an HSM.
const (
	failuresPrefix = "failures/"
	basePrefix     = "base/"
)

func counter(r hsm.Register) uint64 {
	if len(r.Value) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(r.Value)
}

func counterValue(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// failures counts the failed logins that are not forgiven.
func failures(r *hsm.Record) (n uint64) {
	for name, reg := range r.Registers {
		if id, ok := strings.CutPrefix(name, failuresPrefix); ok {
			if base := counter(r.Registers[basePrefix+id]); counter(reg) > base {
				n += counter(reg) - base
			}
		}
	}
	return n
}

func (h *HSM) failures(name string) (uint64, error) {
	cur, err := h.read(hsm.ScopeCluster, hsm.UserRef(name))
	if cur == nil || err != nil {
		return 0, err
	}
	return failures(cur.rec), nil
}

func (h *HSM) locked(name string) (bool, error) {
	n, err := h.failures(name)
	return n > hsm.MaxFailedLogins, err
}

// failed counts a failed login, durably.
func (h *HSM) failed(name string) error {
	_, err := h.update(hsm.ScopeCluster, hsm.UserRef(name), func(cur *held) (*hsm.Record, error) {
		r, err := h.newRecord(hsm.KindLockout, hsm.UserRef(name), name)
		if cur != nil {
			r = cur.rec.Clone()
		}
		if err != nil {
			return nil, err
		}
		mine := failuresPrefix + h.opts.ID.String()
		r.Set(mine, counterValue(counter(r.Registers[mine])+1), h.clock.Next())
		return r, nil
	})
	return err
}

// unlock forgives a user's failed logins, if there are any.
func (h *HSM) unlock(name string) error {
	_, err := h.forgive(name)
	return err
}

func (h *HSM) forgive(name string) (hsm.MaskedObject, error) {
	return h.update(hsm.ScopeCluster, hsm.UserRef(name), func(cur *held) (*hsm.Record, error) {
		if cur == nil || failures(cur.rec) == 0 {
			return nil, nil
		}
		r, at := cur.rec.Clone(), h.clock.Next()
		for name, reg := range cur.rec.Registers {
			if id, ok := strings.CutPrefix(name, failuresPrefix); ok {
				r.Set(basePrefix+id, counterValue(counter(reg)), at)
			}
		}
		return r, nil
	})
}

// attempts bounds the logins in progress, so that many guesses at once are no
// more guesses: per user there are never more than failures that are left.
type attempts struct {
	mu      sync.Mutex
	changed *sync.Cond
	running map[string]uint64
}

// begin waits until another attempt, if it failed too, would still be within
// bounds; failed reads the count so far. The caller calls done when the outcome
// is written.
func (a *attempts) begin(name string, failed func(string) (uint64, error)) (locked bool, done func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed == nil {
		a.changed, a.running = sync.NewCond(&a.mu), map[string]uint64{}
	}
	for {
		n, err := failed(name)
		if err != nil || n > hsm.MaxFailedLogins {
			return err == nil, nil, err
		}
		if n+a.running[name] <= hsm.MaxFailedLogins {
			a.running[name]++
			return false, func() { a.end(name) }, nil
		}
		a.changed.Wait()
	}
}

func (a *attempts) end(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running[name]--; a.running[name] == 0 {
		delete(a.running, name)
	}
	a.changed.Broadcast()
}
