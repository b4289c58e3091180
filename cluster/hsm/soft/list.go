package soft

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Keys implements hsm.Session: token keys of one moment and the session's own
// keys. Filters by reference, label and owner read what they select; others
// read every key that the session may see.
func (s *session) Keys(ctx context.Context, f hsm.Filter) iter.Seq2[hsm.KeyInfo, error] {
	return func(yield func(hsm.KeyInfo, error) bool) {
		done, err := s.enter(ctx, everyone...)
		if err != nil {
			yield(hsm.KeyInfo{}, err)
			return
		}
		defer done()
		snapshot := s.h.store.db.NewSnapshot()
		defer snapshot.Close()
		// The snapshot is older than the list of session keys: a key promoted in
		// between is shown once or not at all, never twice.
		session := s.sessionKeys()
		refs, err := s.candidates(snapshot, f)
		if err != nil {
			yield(hsm.KeyInfo{}, s.h.store.wrap("list", err))
			return
		}
		for i := 0; i < len(refs) || len(session) > 0; {
			var info *hsm.KeyInfo
			if len(session) > 0 && (i == len(refs) || session[0].entry.rec.Ref <= refs[i]) {
				k := session[0].info()
				info, session = &k, session[1:]
			} else {
				info, err = s.visible(snapshot, refs[i])
				i++
			}
			if err = errors.Join(err, ctx.Err()); err != nil {
				yield(hsm.KeyInfo{}, err)
				return
			}
			if info != nil && f.Match(*info) && !yield(*info, nil) {
				return
			}
		}
	}
}

// candidates lists references, ascending, among which are all token keys that
// the filter selects and the session may see.
func (s *session) candidates(r pebble.Reader, f hsm.Filter) ([]hsm.KeyRef, error) {
	label := f.Attrs["label"]
	switch {
	case len(f.Refs) > 0:
		refs := slices.Clone(f.Refs)
		slices.Sort(refs)
		return slices.Compact(refs), nil
	case label != "":
		return refsUnder(r, labelPrefix(label), relOwner)
	case f.Owner != "":
		return refsUnder(r, userPrefix(f.Owner), relOwner)
	case !s.isUser():
		return allKeys(r)
	}
	refs, err := refsUnder(r, userPrefix(s.who.Name), relOwner, relShared)
	if err != nil {
		return nil, err
	}
	public, err := refsUnder(r, userPrefix(publicUser), relPublic)
	refs = append(refs, public...)
	slices.Sort(refs)
	return slices.Compact(refs), err
}

// allKeys lists the live keys.
func allKeys(r pebble.Reader) ([]hsm.KeyRef, error) {
	var refs []hsm.KeyRef
	err := scan(r, []byte{prefixDigest, byte(hsm.ScopeLineage)}, func(key, value []byte) (bool, error) {
		ref, err := refOf(key)
		if err != nil {
			return false, err
		}
		o, err := decodeDigest(ref, value)
		if err == nil && o.Kind == hsm.KindKey && !o.Tombstone {
			refs = append(refs, ref)
		}
		return true, err
	})
	return refs, err
}

// visible returns a live token key if the session may see it, or nil.
func (s *session) visible(r pebble.Reader, ref hsm.KeyRef) (*hsm.KeyInfo, error) {
	cur, err := s.h.readFrom(r, hsm.ScopeLineage, ref)
	if err != nil || cur == nil || cur.rec.Kind != hsm.KindKey || cur.rec.Destroyed || s.access(cur.rec) == accessNone {
		return nil, err
	}
	info := infoOf(cur.rec, cur.obj.Digest)
	info.Shares = s.h.shares(cur.rec)
	return &info, nil
}

// Key implements hsm.Session.
func (s *session) Key(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	done, err := s.enter(ctx, everyone...)
	if err != nil {
		return hsm.KeyInfo{}, err
	}
	defer done()
	if k := s.sessionKey(ref); k != nil {
		return k.info(), nil
	}
	e, _, err := s.lookup(ref)
	if err != nil {
		return hsm.KeyInfo{}, err
	}
	info := infoOf(e.rec, e.digest)
	info.Shares = s.h.shares(e.rec)
	return info, nil
}
