package sim

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// plant is a bug put in on purpose, to see that the checker finds it. None is in
// the product: they are in what stands around it, the network and the disk.
type plant string

// The planted bugs.
const (
	nothing      plant = ""
	skipSync     plant = "the disk does not sync"
	skipCommit   plant = "an HSM acknowledges what it does not do" // a client that commits too early comes to the same
	assumeCommit plant = "an HSM takes an operation in doubt for committed"
	revive       plant = "a merge lets a tombstone lose"
	keepSession  plant = "a session key becomes a token key"
	skipSetting  plant = "an HSM acknowledges an attribute that it does not set"
	forgetAfter  plant = "an HSM stamps a change by its own clock alone, and serves at once"
	leakMaterial plant = "key material is written in clear"
	joinEarly    plant = "an HSM says that it has joined before it has what it lacks"
	keepRemoved  plant = "an HSM that was removed goes on, and clients count it"
	countLeaver  plant = "a removal counts HSMs that are being removed as well"
)

// planted is what the bugs have to remember.
type planted struct {
	mu   sync.Mutex
	live map[hsm.KeyRef]hsm.MaskedObject // keys as they were before their destruction
}

// zombie is an HSM that serves although it has no place in the cluster.
type zombie struct{ *server.Server }

func (z zombie) Module(id pki.Identity) hsm.Module {
	p := hsm.Principal{Role: hsm.RoleNone, Name: id.Name}
	switch id.Kind {
	case pki.KindHSM:
		p.Role = hsm.RoleHSM
	case pki.KindAppliance:
		p.Role = hsm.RoleAppliance
	}
	return z.HSM().Module(p)
}

// early is an HSM that serves callers before it knows what its peers know: otherwise a
// change that is stamped by its clock alone is a matter of a second's chance.
type early struct{ *server.Server }

func (e early) Module(id pki.Identity) hsm.Module {
	if id.Kind == pki.KindHSM {
		return e.Server.Module(id)
	}
	return zombie(e).Module(id)
}

// lies tells whether an HSM only seems to take part in an operation: the second,
// seldom.
func (w *world) lies(s *session, op hsm.OpID) bool {
	return w.plant == skipCommit && strings.HasSuffix(s.to.name, "-2") && w.dice("lie", opName(op)).hit(100)
}

// create, prepare, commit, resolve and insert are what an HSM does when it is
// asked to.
func (w *world) create(ctx context.Context, s *session, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	switch {
	case w.plant == leakMaterial && r.Method == hsm.MethodImport:
		r.Attributes = map[string]string{"label": string(r.Data.Reveal()[:len(clearMaterial)])}
	case w.plant == keepSession && !r.Token:
		token := r
		token.Token = true
		if _, err := s.inner.Create(ctx, op, token); err == nil {
			_ = s.inner.Commit(ctx, op)
		}
	}
	return s.inner.Create(ctx, op, r)
}

func (w *world) prepare(ctx context.Context, s *session, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	if w.lies(s, op) {
		return nil
	}
	return s.inner.Prepare(ctx, op, lease, objects)
}

func (w *world) commit(ctx context.Context, s *session, op hsm.OpID) error {
	if w.lies(s, op) {
		return nil
	}
	return s.inner.Commit(ctx, op)
}

func (w *world) resolve(ctx context.Context, s *session, op hsm.OpID) (hsm.OpState, error) {
	state, err := s.inner.Resolve(ctx, op)
	if w.plant == assumeCommit && err == nil {
		return hsm.OpCommitted, nil
	}
	return state, err
}

func (w *world) insert(ctx context.Context, s *session, objects []hsm.MaskedObject) (hsm.Inserted, error) {
	n, err := s.replica().Insert(ctx, each(objects))
	if w.plant == revive && err == nil {
		_, err = s.inner.Insert(ctx, each(w.revived(objects)))
	}
	return n, err
}

// members hides who leaves from an admin who removes HSMs in a storm.
func (w *world) members(s *session, list []hsm.Member) []hsm.Member {
	if w.plant != countLeaver || !strings.Contains(s.from.name, "/mover") {
		return list
	}
	for i := range list {
		list[i].Leaving = false
	}
	return list
}

func (w *world) change(ctx context.Context, s *session, c hsm.Change) (hsm.MaskedObject, error) {
	switch {
	case w.plant == forgetAfter:
		c.After = 0
	case w.plant == skipSetting && c.Name == "extractable":
		for m, err := range s.inner.Extract(ctx, refs(c.Ref)) {
			return m, err // as it was
		}
	}
	return s.inner.Change(ctx, c)
}

// revived makes keys of tombstones again, of those whose last state is known.
func (w *world) revived(objects []hsm.MaskedObject) (back []hsm.MaskedObject) {
	w.planted.mu.Lock()
	defer w.planted.mu.Unlock()
	if w.planted.live == nil {
		w.planted.live = map[hsm.KeyRef]hsm.MaskedObject{}
	}
	for _, m := range objects {
		was, known := w.planted.live[m.Ref]
		switch {
		case m.Kind != hsm.KindKey:
		case !m.Tombstone:
			w.planted.live[m.Ref] = m
		case known:
			r, err := w.keyring.Unmask(was)
			if err != nil {
				continue
			}
			r.Incarnation++
			if m, err := w.keyring.Mask(r); err == nil {
				back = append(back, m)
			}
		}
	}
	return back
}
