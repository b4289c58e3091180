package hsmtest

import (
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func sorted(refs []hsm.KeyRef) []hsm.KeyRef {
	refs = slices.Clone(refs)
	slices.Sort(refs)
	return refs
}

// pair opens two HSMs of one cluster with the same users.
func (w *world) pair() (a, b *node) {
	w.Helper()
	a, b = w.node(), w.empty()
	w.sync(a, b)
	return a, b
}

// absent checks that nothing shows of a provisional key.
func (n *node) absent(what string, ref hsm.KeyRef) {
	w := n.w
	w.Helper()
	s := n.user(alice)
	if w.visible(s, ref) || w.visible(n.admin(), ref) {
		w.Errorf("%s: visible", what)
	}
	if _, there := w.objects(n.hsm())[ref]; there || len(w.extract(n.hsm(), ref)) > 0 {
		w.Errorf("%s: listed or extracted", what)
	}
	_, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseMAC, Key: ref, Params: hsm.Params{Mechanism: "aes-cmac"}})
	w.want(what+": use", err, hsm.ErrNotFound)
	w.want(what+": change", n.set(s, ref, "label", "x"), hsm.ErrNotFound)
}

func (n *node) present(what string, ref hsm.KeyRef) {
	w := n.w
	w.Helper()
	s := n.user(alice)
	if !w.visible(s, ref) || len(w.extract(n.hsm(), ref)) != 1 {
		w.Errorf("%s: not there", what)
	}
	_, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseMAC, Key: ref, Params: hsm.Params{Mechanism: "aes-cmac"}})
	w.want(what+": use", err, nil)
}

func testProvisionalCommit(w *world) {
	a, b := w.pair()
	sa, sb := a.user(alice), b.user(alice)
	op, before := newOp(), w.root(a.hsm())
	made, err := sa.Create(a.ctx(), op, aesRequest())
	w.ok(err)
	k := made.Keys[0]
	if len(made.Objects) != 1 || made.Objects[0].Ref != k.Ref || made.Objects[0].Digest != k.Digest {
		w.Fatalf("created %+v with objects %v", made.Keys, made.Objects)
	}
	w.ok(sb.Prepare(b.ctx(), op, time.Minute, made.Objects))
	w.want("prepare again", sb.Prepare(b.ctx(), op, time.Minute, made.Objects), nil)
	a.absent("prepared by Create", k.Ref)
	b.absent("prepared by Prepare", k.Ref)
	if w.root(a.hsm()) != before {
		w.Error("a provisional key is in the root")
	}
	for _, s := range []hsm.Session{sa, sb} {
		state, err := s.Resolve(a.ctx(), op)
		w.ok(err)
		w.equal("state", state, hsm.OpPrepared)
		w.ok(s.Commit(a.ctx(), op))
		w.want("commit again", s.Commit(a.ctx(), op), nil)
		state, err = s.Resolve(a.ctx(), op)
		w.ok(err)
		w.equal("state", state, hsm.OpCommitted)
	}
	a.present("committed where it was made", k.Ref)
	b.present("committed elsewhere", k.Ref)
	w.equal("masked objects", w.extractOne(a.hsm(), k.Ref), w.extractOne(b.hsm(), k.Ref))
	w.equal("masked object", w.extractOne(a.hsm(), k.Ref), made.Objects[0])
	w.want("prepare after commit", sb.Prepare(b.ctx(), op, time.Minute, made.Objects), nil)
}

func testProvisionalAbort(w *world) {
	a, b := w.pair()
	sa, sb := a.user(alice), b.user(alice)
	op := newOp()
	made, err := sa.Create(a.ctx(), op, aesRequest())
	w.ok(err)
	k := made.Keys[0]
	w.ok(sa.Abort(a.ctx(), op))
	w.want("abort again", sa.Abort(a.ctx(), op), nil)
	a.absent("aborted", k.Ref)
	w.want("commit after abort", sa.Commit(a.ctx(), op), hsm.ErrOp)
	w.want("prepare after abort", sa.Prepare(a.ctx(), op, time.Minute, made.Objects), hsm.ErrOp)
	w.ok(sb.Abort(b.ctx(), op))
	w.want("prepare after an abort that came first", sb.Prepare(b.ctx(), op, time.Minute, made.Objects), hsm.ErrOp)
	state, err := b.hsm().Resolve(b.ctx(), op)
	w.ok(err)
	w.equal("state", state, hsm.OpAborted)
	w.ok(sb.Prepare(b.ctx(), newOp(), time.Minute, made.Objects)) // the reference is free again

	op = newOp()
	made, err = sa.Create(a.ctx(), op, aesRequest())
	w.ok(err)
	w.ok(sa.Commit(a.ctx(), op))
	w.want("abort after commit", sa.Abort(a.ctx(), op), nil)
	if o := w.objects(a.hsm())[made.Keys[0].Ref]; !o.Tombstone {
		w.Errorf("aborted after commit: %+v, want a tombstone", o)
	}
	_, err = sa.Key(a.ctx(), made.Keys[0].Ref)
	w.want("show", err, hsm.ErrDestroyed)
	w.want("commit after that", sa.Commit(a.ctx(), op), hsm.ErrOp)
	w.abortOfOthers()
}

// abortOfOthers: an abort after a commit destroys only what was born in the
// operation, and only for its owner.
func (w *world) abortOfOthers() {
	a := w.node()
	r := aesRequest()
	r.Attributes["destroyable"] = "false"
	k := a.create(a.user(alice), r)[0]
	m := w.extractOne(a.hsm(), k.Ref)
	fresh := func() *node {
		b := w.empty()
		for _, name := range []string{adminName, alice, bob} {
			_, err := w.insert(b.hsm(), w.extractOne(a.hsm(), hsm.UserRef(name)))
			w.ok(err)
		}
		return b
	}
	for what, as := range map[string]func(*node) hsm.Session{"admin": (*node).admin, "appliance": (*node).appliance, "HSM": (*node).hsm} {
		b := fresh()
		s, op := as(b), newOp()
		w.ok(s.Prepare(b.ctx(), op, time.Minute, []hsm.MaskedObject{m}))
		w.ok(s.Commit(b.ctx(), op))
		w.want("abort of what an "+what+" committed", s.Abort(b.ctx(), op), hsm.ErrDenied)
		b.present("after that", k.Ref)
		w.want("commit again", s.Commit(b.ctx(), op), nil)
	}
	b := fresh()
	s, op := b.user(alice), newOp()
	_, err := s.Create(b.ctx(), op, hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: []hsm.MaskedObject{m}})
	w.ok(err)
	w.ok(s.Commit(b.ctx(), op))
	w.want("abort of an inserted copy", s.Abort(b.ctx(), op), hsm.ErrDenied)
	b.present("after that", k.Ref)
	w.advance(2 * time.Hour)
	b = fresh()
	s, op = b.user(alice), newOp()
	w.ok(s.Prepare(b.ctx(), op, time.Minute, []hsm.MaskedObject{m}))
	w.ok(s.Commit(b.ctx(), op))
	w.want("abort of a copied old key", s.Abort(b.ctx(), op), hsm.ErrDenied)
	b.present("after that", k.Ref)
}

func testProvisionalLease(w *world) {
	a, b := w.pair()
	sa, sb := a.user(alice), b.user(alice)
	op := newOp()
	r := aesRequest()
	r.Lease = 10 * time.Second
	made, err := sa.Create(a.ctx(), op, r)
	w.ok(err)
	w.ok(sb.Prepare(b.ctx(), op, 10*time.Second, made.Objects))
	w.ok(sb.Commit(b.ctx(), op))
	info, err := a.nobody().Info(a.ctx())
	w.ok(err)
	w.equal("in doubt before", info.InDoubt, uint64(0))
	w.advance(11 * time.Second)
	w.want("commit after the lease", sa.Commit(a.ctx(), op), hsm.ErrOp)
	info, err = a.nobody().Info(a.ctx())
	w.ok(err)
	w.equal("in doubt", info.InDoubt, uint64(1))
	state, err := b.hsm().Resolve(b.ctx(), op)
	w.ok(err)
	w.equal("state where it is committed", state, hsm.OpCommitted)
	state, err = a.hsm().Resolve(a.ctx(), op)
	w.ok(err)
	w.equal("state where it is in doubt", state, hsm.OpAborted)
	a.absent("in doubt", made.Keys[0].Ref)

	// Server-side sync brings the object from where it was committed.
	got, err := w.insert(a.hsm(), made.Objects...)
	w.ok(err)
	w.equal("conflicts", len(got.Conflicts), 0)
	a.present("committed elsewhere", made.Keys[0].Ref)
	state, err = a.hsm().Resolve(a.ctx(), op)
	w.ok(err)
	w.equal("state", state, hsm.OpCommitted)
	w.equal("roots", w.root(a.hsm()), w.root(b.hsm()))
}

// testProvisionalElsewhere: an object arrives by sync while it is provisional
// here; the whole operation is committed then, a pair's other half included.
func testProvisionalElsewhere(w *world) {
	a, b := w.pair()
	op := newOp()
	made, err := a.user(alice).Create(a.ctx(), op, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ed25519"})
	w.ok(err)
	w.ok(b.user(alice).Prepare(b.ctx(), op, time.Minute, made.Objects))
	w.ok(a.user(alice).Commit(a.ctx(), op))
	_, err = w.insert(b.hsm(), made.Objects[1])
	w.ok(err)
	for _, k := range made.Keys {
		if !w.visible(b.user(alice), k.Ref) {
			w.Errorf("%s is not there", k.Class)
		}
	}
	w.want("commit by the client", b.user(alice).Commit(b.ctx(), op), nil)

	clash := w.key(hsm.NewKeyRef(), alice, w.now())
	mine, theirs := w.mask(clash), w.mask(w.key(clash.Ref, alice, w.now()))
	w.ok(b.user(alice).Prepare(b.ctx(), newOp(), time.Minute, []hsm.MaskedObject{mine}))
	got, err := w.insert(b.hsm(), theirs)
	w.ok(err)
	w.equal("conflicts with a provisional key", got.Conflicts, []hsm.KeyRef{clash.Ref})
}

func testProvisionalRefuses(w *world) {
	n := w.node()
	s, b := n.user(alice), n.user(bob)
	op := newOp()
	made, err := s.Create(n.ctx(), op, aesRequest())
	w.ok(err)
	other := w.key(made.Keys[0].Ref, alice, w.now())
	prepare := func(s hsm.Session, op hsm.OpID, objects ...hsm.MaskedObject) error {
		return s.Prepare(n.ctx(), op, time.Minute, objects)
	}
	fresh := func(owner string) hsm.MaskedObject { return w.mask(w.key(hsm.NewKeyRef(), owner, w.now())) }
	w.want("commit of an unknown operation", s.Commit(n.ctx(), newOp()), hsm.ErrOp)
	w.want("commit by another user", b.Commit(n.ctx(), op), hsm.ErrDenied)
	w.want("abort by another user", b.Abort(n.ctx(), op), hsm.ErrDenied)
	_, err = b.Resolve(n.ctx(), op)
	w.want("resolve by another user", err, hsm.ErrDenied)
	_, err = s.Create(n.ctx(), op, aesRequest())
	w.want("create under a pending operation", err, hsm.ErrExist)
	w.want("another key under a pending operation", prepare(s, op, fresh(alice)), hsm.ErrExist)
	w.want("a reference that is being created", prepare(s, newOp(), made.Objects[0]), hsm.ErrExist)
	w.want("another birth of one that is", prepare(s, newOp(), w.mask(other)), hsm.ErrConflict)
	w.ok(s.Commit(n.ctx(), op))
	w.want("a reference that exists", prepare(s, newOp(), made.Objects[0]), hsm.ErrExist)
	w.want("another birth of one that exists", prepare(s, newOp(), w.mask(other)), hsm.ErrConflict)
	w.want("nothing", prepare(s, newOp()), hsm.ErrInvalid)
	w.want("another's key", prepare(s, newOp(), fresh(bob)), hsm.ErrDenied)
	w.want("a user", prepare(n.hsm(), newOp(), w.extractOne(n.hsm(), hsm.UserRef(bob))), hsm.ErrInvalid)
	w.want("from the future", prepare(s, newOp(), w.mask(w.key(hsm.NewKeyRef(), alice, w.now().Add(time.Hour)))), hsm.ErrFuture)
	w.want("a long lease", s.Prepare(n.ctx(), newOp(), 48*time.Hour, []hsm.MaskedObject{fresh(alice)}), hsm.ErrInvalid)
	dead := w.key(hsm.NewKeyRef(), alice, w.now())
	dead.Birth, err = w.keyring.Birth(dead)
	w.ok(err)
	dead.Destroy()
	tombstone, err := w.keyring.Mask(dead)
	w.ok(err)
	w.want("a tombstone", prepare(s, newOp(), tombstone), hsm.ErrInvalid)
	damaged := fresh(alice)
	damaged.Bytes = slices.Clone(damaged.Bytes)
	damaged.Bytes[len(damaged.Bytes)-1] ^= 1
	w.want("a damaged one", prepare(s, newOp(), damaged), hsm.ErrCorrupt)
}
