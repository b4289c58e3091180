package hsm

import "fmt"

// PeekMasked reads of a masked object what replication knows of it: kind,
// reference, state, digest and lineage. It finds what ParseMasked finds, at a
// fraction of its cost and without allocating, since attributes are passed over
// and not decoded; so an object whose attributes do not decode passes here and
// fails with ParseMasked. Either way it is a claim until an HSM unmasks the object.
// ErrCorrupt. The MaskedObject's Bytes are b itself.
func PeekMasked(b []byte) (MaskedObject, error) {
	env, err := openEnvelope(b)
	if err != nil {
		return MaskedObject{}, err
	}
	return env.peek(b)
}

func (e *envelope) peek(b []byte) (MaskedObject, error) {
	m, ok := peekClear(e.clear)
	if !ok {
		return MaskedObject{}, fmt.Errorf("%w: masked object: the clear part does not decode", ErrCorrupt)
	}
	if m.Tombstone != (len(e.sealed) == 0) || m.Tombstone != (e.epoch == noEpoch) {
		return MaskedObject{}, fmt.Errorf("%w: masked object %s: sealed part and epoch do not fit its state", ErrCorrupt, m.Ref)
	}
	m.Digest, m.Bytes = Digest(e.siv[:len(Digest{})]), b
	return m, nil
}

// PeekColumns is PeekMasked and SplitMasked in one pass that does not allocate:
// the opaque part is appended to opaque, which is returned; the clear part, which
// aliases b, too. The epoch is that of the masking key that seals the object, 0
// for a tombstone. ErrCorrupt.
func PeekColumns(opaque, b []byte) (m MaskedObject, epoch uint64, withOpaque, clear []byte, err error) {
	env, err := openEnvelope(b)
	if err != nil {
		return m, 0, opaque, nil, err
	}
	if m, err = env.peek(b); err != nil {
		return m, 0, opaque, nil, err
	}
	return m, env.epoch, env.appendOpaque(opaque), env.clear, nil
}

// peekClear reads the fields of a clear part that identify the object.
func peekClear(b []byte) (m MaskedObject, ok bool) {
	in := reader{b: b}
	n, last, seen := in.head(cborMap), uint64(0), uint64(0)
	for i := uint64(0); i < n && !in.bad; i++ {
		key := in.uint()
		if key <= last || key > keyRivals {
			return m, false
		}
		last = key
		seen |= 1 << key
		if i == n-1 && key >= keyRegisters { // the last field, and most of the bytes: not looked into
			in.skipRest()
			break
		}
		switch key {
		case keyKind:
			m.Kind = Kind(min(in.count(), 255))
		case keyRef:
			m.Ref = KeyRef(in.count())
		case keyLineage:
			m.Lineage = Lineage(in.fixed(len(m.Lineage)))
		case keyDestroyed:
			m.Tombstone = in.flag()
		default:
			in.skip()
		}
	}
	_, known := kindNames[m.Kind]
	return m, in.done() && seen&clearRequired == clearRequired && known && m.Ref.valid()
}

// skip passes over one value, whatever is nested in it.
func (r *reader) skip() {
	b, at := r.b, r.at
	for left := uint64(1); left > 0; left-- {
		if at >= len(b) {
			r.fail()
			return
		}
		h := b[at]
		n, major := uint64(h&0x1f), h&0xe0
		if n < 24 && major != 0xe0 {
			at++
		} else if r.at = at; major == 0xe0 {
			r.flag()
			at = r.at
			continue
		} else {
			n = r.longHead(major)
			at = r.at
		}
		switch major {
		case cborUint:
		case cborBytes, cborText:
			if n > uint64(len(b)-at) {
				r.fail()
				return
			}
			at += int(n)
		case cborArray, cborMap:
			if n > uint64(len(b)-at) { // each element takes a byte at least
				r.fail()
				return
			}
			if left += n; major == cborMap {
				left += n
			}
		default: // numbers below zero, and tags
			r.fail()
			return
		}
		if r.bad {
			return
		}
	}
	r.at = at
}
