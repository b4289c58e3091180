package soft

import (
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// reindex replaces the index entries of old, which may be nil, by those of r.
func (t *tx) reindex(old *held, r *hsm.Record) {
	was := map[string]byte{}
	if old != nil {
		was = entries(old.rec)
	}
	is := entries(r)
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
	under := func(user string) string { return string(withRef(userPrefix(user), r.Ref)) }
	if r.Destroyed {
		return map[string]byte{under(r.Core.Owner): relTombstone}
	}
	e := map[string]byte{}
	for _, user := range r.Shares() {
		e[under(user)] = relShared
	}
	if r.Shown() {
		e[under(publicUser)] = relPublic
	}
	e[under(r.Core.Owner)] = relOwner
	if label := r.Text("label"); label != "" {
		e[string(withRef(labelPrefix(label), r.Ref))] = relOwner
	}
	return e
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
