package hsmtest

import (
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

func testInsertMerges(w *world) {
	a, b := w.pair()
	k := a.aes(a.user(alice))
	got, err := w.insert(b.hsm(), w.extractOne(a.hsm(), k.Ref))
	w.ok(err)
	w.equal("first", got, hsm.Inserted{Added: 1})
	got, err = w.insert(b.hsm(), w.extractOne(a.hsm(), k.Ref))
	w.ok(err)
	w.equal("again", got, hsm.Inserted{Unchanged: 1})

	w.ok(a.set(a.user(alice), k.Ref, "label", "set at a"))
	w.ok(b.set(b.user(alice), k.Ref, "id", "0x0b"))
	stale := w.extractOne(b.hsm(), k.Ref)
	w.advance(time.Second)
	w.ok(b.set(b.user(alice), k.Ref, "label", "set at b, later"))
	got, err = w.insert(a.hsm(), w.extractOne(b.hsm(), k.Ref))
	w.ok(err)
	w.equal("merged", got, hsm.Inserted{Changed: 1})
	got, err = w.insert(b.hsm(), w.extractOne(a.hsm(), k.Ref))
	w.ok(err)
	got2, err := w.insert(a.hsm(), stale)
	w.ok(err)
	w.equal("nothing new", got2, hsm.Inserted{Unchanged: 1})
	info, err := a.user(alice).Key(a.ctx(), k.Ref)
	w.ok(err)
	w.equal("label and id", []string{info.Label, info.ID}, []string{"set at b, later", "0b"})
	w.equal("masked objects", w.extractOne(a.hsm(), k.Ref), w.extractOne(b.hsm(), k.Ref))
	w.equal("roots", w.root(a.hsm()), w.root(b.hsm()))
	_ = got

	twice := w.mask(w.key(hsm.NewKeyRef(), alice, w.now()))
	got, err = w.insert(a.hsm(), twice, twice)
	w.ok(err)
	w.equal("one object twice in a sequence", got, hsm.Inserted{Added: 1, Unchanged: 1})
}

func testInsertRefuses(w *world) {
	n := w.node()
	s := n.hsm()
	good := func() hsm.MaskedObject { return w.mask(w.key(hsm.NewKeyRef(), alice, w.now())) }
	damaged := good()
	damaged.Bytes = slices.Clone(damaged.Bytes)
	damaged.Bytes[len(damaged.Bytes)/2] ^= 1
	mislabelled := good()
	mislabelled.Ref++
	stranger := hsm.NewKeyring()
	foreign := w.key(hsm.NewKeyRef(), alice, w.now())
	var err error
	foreign.Birth, err = stranger.Birth(foreign)
	w.ok(err)
	other, err := stranger.Mask(foreign)
	w.ok(err)
	for _, c := range []struct {
		what string
		m    hsm.MaskedObject
		want error
	}{
		{"damaged", damaged, hsm.ErrCorrupt},
		{"under another reference", mislabelled, hsm.ErrCorrupt},
		{"of another lineage", other, hsm.ErrLineage},
		{"from the future", w.mask(w.key(hsm.NewKeyRef(), alice, w.now().Add(6*time.Minute))), hsm.ErrFuture},
		{"of the cluster's scope", w.extractMember(n), hsm.ErrInvalid},
	} {
		first := good()
		got, err := w.insert(s, first, c.m)
		w.want(c.what, err, c.want)
		w.equal(c.what+": what came before it", got.Added, 1)
		if len(w.extract(s, first.Ref)) != 1 || len(w.extract(s, c.m.Ref)) != 0 {
			w.Errorf("%s: counted and kept differ", c.what)
		}
	}
	broken := errors.New("the source broke")
	first := good()
	got, err := s.Insert(n.ctx(), func(yield func(hsm.MaskedObject, error) bool) {
		_ = yield(first, nil) && yield(hsm.MaskedObject{}, broken)
	})
	w.equal("before the source broke", got.Added, 1)
	if err == nil || len(w.extract(s, first.Ref)) != 1 {
		w.Errorf("a broken source: %v", err)
	}
	w.want("a stamp a little ahead", second(w.insert(s, w.mask(w.key(hsm.NewKeyRef(), alice, w.now().Add(4*time.Minute))))), nil)
}

func second[T any](_ T, err error) error { return err }

// extractMember makes a member and returns its masked object.
func (w *world) extractMember(n *node) hsm.MaskedObject {
	w.Helper()
	m, err := n.hsm().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeMember, Member: &hsm.Member{ID: n.id, Name: "hsm-1", Address: "127.0.0.1:1"}})
	w.ok(err)
	return m
}

func testInsertConflicts(w *world) {
	n := w.node()
	k := n.aes(n.user(alice), "encrypt")
	before := w.extractOne(n.hsm(), k.Ref)
	fine := w.mask(w.key(hsm.NewKeyRef(), alice, w.now()))
	got, err := w.insert(n.hsm(), w.mask(w.key(k.Ref, alice, w.now())), fine)
	w.ok(err)
	w.equal("inserted", got, hsm.Inserted{Added: 1, Conflicts: []hsm.KeyRef{k.Ref}})
	w.equal("the key that was there", w.extractOne(n.hsm(), k.Ref), before)
}

func testInsertTombstones(w *world) {
	a, b := w.pair()
	k := a.aes(a.user(alice), "encrypt")
	live := w.extractOne(a.hsm(), k.Ref)
	w.must(w.insertOne(b, live))
	use := hsm.Use{Kind: hsm.UseEncrypt, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-gcm"}}
	b.use(b.user(alice), use)
	tombstone, err := a.user(alice).Change(a.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref})
	w.ok(err)
	w.advance(time.Hour)
	w.ok(b.set(b.user(alice), k.Ref, "label", "set long after"))
	got, err := w.insert(b.hsm(), tombstone)
	w.ok(err)
	w.equal("tombstone over a live key", got, hsm.Inserted{Changed: 1})
	_, err = b.user(alice).Use(b.ctx(), use)
	w.want("use", err, hsm.ErrDestroyed)
	got, err = w.insert(b.hsm(), live)
	w.ok(err)
	w.equal("a live key over its tombstone", got, hsm.Inserted{Unchanged: 1})
	w.equal("roots", w.root(b.hsm()), w.root(a.hsm()))
	_, err = b.user(alice).Key(b.ctx(), k.Ref)
	w.want("show", err, hsm.ErrDestroyed)

	c := w.empty()
	w.must(w.insertOne(c, tombstone))
	got, err = w.insert(c.hsm(), live)
	w.ok(err)
	w.equal("a live key where only the tombstone is known", got, hsm.Inserted{Unchanged: 1})
}

// testRevive: a destroyed key lives again only when its owner or an admin asks
// for it by name, with a state from before; and then on every HSM.
func testRevive(w *world) {
	a, b := w.pair()
	k := a.aes(a.user(alice), "encrypt")
	live := w.extractOne(a.hsm(), k.Ref)
	revive := func(n *node, s hsm.Session, m hsm.MaskedObject) (hsm.MaskedObject, error) {
		return s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeRevive, Ref: k.Ref, Masked: &m})
	}
	_, err := revive(a, a.user(alice), live)
	w.want("a live key", err, hsm.ErrExist)
	_, err = revive(b, b.admin(), live)
	w.want("a key that was never here", err, hsm.ErrNotFound)
	tombstone, err := a.user(alice).Change(a.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref})
	w.ok(err)
	w.must(w.insertOne(b, tombstone))
	_, err = revive(a, a.user(alice), tombstone)
	w.want("by its tombstone", err, hsm.ErrInvalid)
	_, err = revive(a, a.user(bob), live)
	w.want("by another user", err, hsm.ErrNotFound)
	_, err = revive(a, a.user(alice), w.extractOne(a.hsm(), a.aes(a.user(alice)).Ref))
	w.want("by another key", err, hsm.ErrInvalid)

	first, err := revive(a, a.user(alice), live)
	w.ok(err)
	second, err := revive(b, b.admin(), live)
	w.ok(err)
	w.equal("revived on two HSMs", second, first)
	again, err := revive(a, a.user(alice), live)
	w.ok(err)
	w.equal("revived again", again, first)
	use := hsm.Use{Kind: hsm.UseEncrypt, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-gcm"}}
	a.use(a.user(alice), use)
	got, err := w.insert(a.hsm(), tombstone)
	w.ok(err)
	w.equal("the old tombstone", got, hsm.Inserted{Unchanged: 1})
	a.use(a.user(alice), use)
	got, err = w.insert(b.hsm(), first)
	w.ok(err)
	w.equal("the revived key", got, hsm.Inserted{Unchanged: 1})
	w.equal("roots after sync", w.visible(b.user(alice), k.Ref), true)
	w.must(a.user(alice).Change(a.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref}))
	got, err = w.insert(a.hsm(), first)
	w.ok(err)
	w.equal("the revived key after its destruction", got, hsm.Inserted{Unchanged: 1})
}

func (w *world) insertOne(n *node, m hsm.MaskedObject) (hsm.MaskedObject, error) {
	_, err := w.insert(n.hsm(), m)
	return m, err
}

// testInsertMasked: CloudHSM's insertMaskedObject, in two steps.
func testInsertMasked(w *world) {
	a, b := w.pair()
	k := a.aes(a.user(alice), "encrypt")
	m := w.extractOne(a.user(alice), k.Ref)
	r := hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: []hsm.MaskedObject{m}}
	_, err := b.tryCreate(b.user(bob), r)
	w.want("by another user", err, hsm.ErrDenied)
	got := b.create(b.user(alice), r)
	w.equal("key", got, []hsm.KeyInfo{k})
	w.equal("object", w.extractOne(b.hsm(), k.Ref), m)
	_, err = b.tryCreate(b.user(alice), r)
	w.want("again", err, hsm.ErrExist)
	w.must(b.user(alice).Change(b.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref}))
	_, err = b.tryCreate(b.user(alice), r)
	w.want("after it was destroyed", err, hsm.ErrDestroyed)
}

func testOwnKeysOnly(w *world) {
	n := w.node()
	mine, theirs := n.aes(n.user(alice)), n.aes(n.user(bob))
	dead := n.aes(n.user(alice))
	tombstone, err := n.user(alice).Change(n.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: dead.Ref})
	w.ok(err)
	s := n.user(alice)
	w.equal("objects", w.objects(s), map[hsm.KeyRef]hsm.Object{
		mine.Ref: {Ref: mine.Ref, Kind: hsm.KindKey, Digest: mine.Digest}, dead.Ref: tombstone.Object,
	})
	w.equal("extracted", len(w.extract(s, mine.Ref, theirs.Ref, hsm.UserRef(alice))), 1)
	_, err = w.insert(s, w.mask(w.key(hsm.NewKeyRef(), bob, w.now())))
	w.want("insert of another's key", err, hsm.ErrDenied)
	_, err = w.insert(s, w.extractOne(n.hsm(), hsm.UserRef(alice)))
	w.want("insert of a user", err, hsm.ErrDenied)
	got, err := w.insert(s, w.mask(w.key(hsm.NewKeyRef(), alice, w.now())))
	w.ok(err)
	w.equal("insert of an own key", got.Added, 1)
}

func testClusterScope(w *world) {
	a, b := w.pair()
	m := w.extractMember(a)
	scope := func(n *node) hsm.SketchReplica { return n.hsm().Scoped(hsm.ScopeCluster) }
	if _, there := w.objects(a.hsm())[m.Ref]; there {
		w.Error("a member is listed with the lineage")
	}
	if _, there := w.objects(scope(a))[m.Ref]; !there {
		w.Error("a member is not listed with the cluster")
	}
	got, err := w.insert(scope(b), w.extractOne(scope(a), m.Ref))
	w.ok(err)
	w.equal("inserted", got, hsm.Inserted{Added: 1})
	w.equal("roots", w.root(scope(a)), w.root(scope(b)))
	clone := w.openWith(w.keyring, hsm.NewClusterID())
	_, err = w.insert(scope(clone), m)
	w.want("member of another cluster", err, hsm.ErrLineage)
	_, err = w.insert(scope(b), w.mask(w.key(hsm.NewKeyRef(), alice, w.now())))
	w.want("key in the cluster's scope", err, hsm.ErrInvalid)
}

// recomputed is the root and some cells of what a source lists.
func (w *world) recomputed(s hsm.Sketcher, cells int) (hsm.Root, []hsm.Cell) {
	w.Helper()
	keys, err := s.FingerprintKeys(w.Context())
	w.ok(err)
	root := reconcile.NewRootState(keys)
	for _, o := range w.objects(s) {
		root.Add(reconcile.ItemOf(o))
	}
	return root.Root(), w.take(reconcile.CellsFrom(keys, nil, 0, func() iter.Seq2[hsm.Object, error] { return s.Objects(w.Context()) }), cells)
}

func (w *world) take(seq iter.Seq2[hsm.Cell, error], n int) (cells []hsm.Cell) {
	w.Helper()
	for c, err := range seq {
		w.ok(err)
		if cells = append(cells, c); len(cells) == n {
			break
		}
	}
	return cells
}

func testSketch(w *world) {
	n := w.node()
	s := n.user(alice)
	var keys []hsm.KeyInfo
	check := func(what string) {
		w.Helper()
		for _, of := range []hsm.Sketcher{n.hsm(), n.hsm().Scoped(hsm.ScopeCluster), s, n.user(bob)} {
			root, cells := w.recomputed(of, 5000)
			w.equal(what+": root", w.root(of), root)
			if !slices.Equal(w.take(of.Cells(w.Context(), 0), 5000), cells) {
				w.Errorf("%s: the cells are not those of the objects listed", what)
			}
			if !slices.Equal(w.take(of.Cells(w.Context(), 4000), 1000), cells[4000:]) {
				w.Errorf("%s: the cells from the middle are not those of the objects listed", what)
			}
		}
	}
	check("empty")
	for range 20 {
		keys = append(keys, n.aes(s))
	}
	n.aes(n.user(bob))
	w.extractMember(n)
	check("created")
	w.ok(n.set(s, keys[0].Ref, "label", "changed"))
	w.must(s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: keys[1].Ref}))
	n.fail(1)
	check("changed")
	op := newOp()
	_, err := s.Create(n.ctx(), op, aesRequest())
	w.ok(err)
	check("provisional")
	w.ok(s.Commit(n.ctx(), op))
	check("committed")
}
