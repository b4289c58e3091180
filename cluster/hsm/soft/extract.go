package soft

import (
	"bytes"
	"context"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Extract implements hsm.Source, in the order asked for. A few objects are looked
// up; of many the rest is of one moment. References that ascend are read at the
// speed of a scan.
func (r replica) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		done, err := r.enter(ctx)
		if err != nil {
			yield(hsm.MaskedObject{}, err)
			return
		}
		defer done()
		x := &extractor{replica: r}
		defer x.close()
		for ref := range refs {
			m, err := x.extract(ctx, ref)
			if err != nil {
				yield(hsm.MaskedObject{}, err)
				return
			}
			if m.Bytes != nil && !yield(m, nil) {
				return
			}
		}
	}
}

const (
	// lookups is how many objects are worth less than an iterator.
	lookups = 4
	// slabSize is how much is copied out of the store into one allocation.
	slabSize = 64 << 10
)

// extractor reads objects, one after the other.
type extractor struct {
	replica
	count int
	it    *pebble.Iterator // once there are more than a few
	on    bool             // it stands on an object that was read
	slab  []byte
}

// close ends the iterator. What it has read is good whatever comes of that.
func (x *extractor) close() {
	if x.it != nil {
		_ = x.it.Close()
	}
}

// extract returns one object, without bytes if there is none that the session
// may have.
func (x *extractor) extract(ctx context.Context, ref hsm.KeyRef) (hsm.MaskedObject, error) {
	if err := ctx.Err(); err != nil {
		return hsm.MaskedObject{}, err
	}
	h := x.s.h
	b, err := x.read(ref)
	if b == nil || err != nil {
		return hsm.MaskedObject{}, h.store.wrap("read "+ref.String(), err)
	}
	m, err := x.open(b)
	if err != nil {
		return hsm.MaskedObject{}, h.damaged(ref, err)
	}
	return m, nil
}

// open reads what the object is. Of a user's session the owner matters, too.
func (x *extractor) open(b []byte) (hsm.MaskedObject, error) {
	if !x.s.isUser() {
		return hsm.PeekMasked(b)
	}
	m, rec, err := hsm.ParseMasked(b)
	if err == nil && !x.s.mayCopy(rec) {
		return hsm.MaskedObject{}, nil
	}
	return m, err
}

// read returns a copy of the bytes under a reference, nil if there are none.
func (x *extractor) read(ref hsm.KeyRef) ([]byte, error) {
	key := objectKey(x.scope, ref)
	if x.count++; x.count <= lookups {
		return get(x.s.h.store.db, key)
	}
	if err := x.start(); err != nil {
		return nil, err
	}
	if !x.moveTo(key) {
		return nil, x.it.Error()
	}
	v, err := x.it.ValueAndErr()
	if err != nil {
		return nil, err
	}
	return x.copy(v), nil
}

func (x *extractor) start() (err error) {
	if x.it != nil {
		return nil
	}
	prefix := []byte{prefixObject, byte(x.scope)}
	x.it, err = x.s.h.store.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	return err
}

// moveTo moves the iterator to a key, and tells whether it is there. The next
// object is often the one that is asked for next.
func (x *extractor) moveTo(key []byte) bool {
	if x.on && x.it.Next() && bytes.Equal(x.it.Key(), key) {
		return true
	}
	x.on = x.it.SeekGE(key) && bytes.Equal(x.it.Key(), key)
	return x.on
}

// copy keeps small values together, so that a million objects are not a million
// allocations.
func (x *extractor) copy(v []byte) []byte {
	if len(v) > slabSize/8 {
		return bytes.Clone(v)
	}
	if len(x.slab)+len(v) > cap(x.slab) {
		x.slab = make([]byte, 0, slabSize)
	}
	at := len(x.slab)
	x.slab = append(x.slab, v...)
	return x.slab[at:len(x.slab):len(x.slab)]
}
