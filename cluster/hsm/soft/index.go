package soft

import (
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// reindex replaces the index entries of old, which may be nil, by those of r.
func (t *tx) reindex(old *held, r *hsm.Record) {
	if old == nil {
		eachEntry(r.Ref, r.Destroyed, r.Glance(), nil, func(key []byte, rel byte) { t.set(key, []byte{rel}) })
		return
	}
	was, is := entries(old.rec), entries(r)
	for key := range was {
		if _, stays := is[key]; !stays {
			t.delete([]byte(key))
		}
	}
	for key, rel := range is {
		if was[key] != rel {
			t.set([]byte(key), []byte{rel})
		}
	}
}

// entries lists the index entries of a key: by label, and by every user who
// may see it. A tombstone is listed under its owner, who may replicate it.
func entries(r *hsm.Record) map[string]byte {
	e := map[string]byte{}
	eachEntry(r.Ref, r.Destroyed, r.Glance(), nil, func(key []byte, rel byte) { e[string(key)] = rel })
	return e
}

// eachEntry calls f for each index entry of a key, none of which comes twice. The key is
// valid during the call, and made in scratch if that is large enough.
func eachEntry(ref hsm.KeyRef, destroyed bool, g hsm.Glance, scratch []byte, f func(key []byte, rel byte)) {
	key := scratch[:0]
	under := func(user string, rel byte) {
		key = withRef(append(append(append(key[:0], prefixUser), user...), 0), ref)
		f(key, rel)
	}
	if destroyed {
		under(g.Owner, relTombstone)
		return
	}
	for _, user := range g.Shares {
		if user != g.Owner && (user != publicUser || !g.Shown) {
			under(user, relShared)
		}
	}
	if g.Shown && g.Owner != publicUser {
		under(publicUser, relPublic)
	}
	under(g.Owner, relOwner)
	if len(g.Label) > 0 {
		key = withRef(appendLabel(key[:0], g.Label), ref)
		f(key, relOwner)
	}
}

// refsUnder lists the references under an index prefix, ascending, whose
// relation is one of rels.
func refsUnder(r pebble.Reader, prefix []byte, rels ...byte) ([]hsm.KeyRef, error) {
	var refs []hsm.KeyRef
	err := scan(r, prefix, func(key, value []byte) (bool, error) {
		if len(value) == 1 && slices.Contains(rels, value[0]) {
			ref, err := refOf(key)
			if err != nil {
				return false, err
			}
			refs = append(refs, ref)
		}
		return true, nil
	})
	return refs, err
}
