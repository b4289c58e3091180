package soft

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The keyspace of the object store. Integers are big endian, so that iteration
// ascends by reference or time.
//
//	o scope ref        masked object
//	d scope ref        kind, tombstone, digest: what lists and start-up read
//	l label-hash ref   live keys by label; the hash is SHA-256 cut to 16 bytes
//	u user 0 ref       keys by who may see them; "*" are public keys
//	a op               mark: an operation committed or aborted
//	t time op          marks by age
//	f                  version of this layout
//	c time             no stamp is later; no value
const (
	prefixObject   = 'o'
	prefixDigest   = 'd'
	prefixLabel    = 'l'
	prefixUser     = 'u'
	prefixMark     = 'a'
	prefixMarkTime = 't'
	prefixFormat   = 'f'
	prefixBoots    = 'b' // this start and those before it
	prefixSeen     = 's' // of other HSMs
	prefixLatest   = 'c'
)

const storeFormat = 1

// publicUser is the user that indexes public keys, which all crypto users see.
// It is no valid user name.
const publicUser = "*"

// What a user is to a key, in the index.
const (
	relOwner     = 'o'
	relTombstone = 't' // of a key it owned
	relShared    = 's'
	relPublic    = 'p'
)

func objectKey(s hsm.Scope, r hsm.KeyRef) []byte { return scopedKey(prefixObject, s, r) }
func digestKey(s hsm.Scope, r hsm.KeyRef) []byte { return scopedKey(prefixDigest, s, r) }

func scopedKey(prefix byte, s hsm.Scope, r hsm.KeyRef) []byte {
	return appendScopedKey(make([]byte, 0, 10), prefix, s, r)
}

func appendScopedKey(b []byte, prefix byte, s hsm.Scope, r hsm.KeyRef) []byte {
	return binary.BigEndian.AppendUint64(append(b, prefix, byte(s)), uint64(r))
}

func labelPrefix(label string) []byte { return appendLabel(nil, []byte(label)) }

func appendLabel(b, label []byte) []byte {
	h := sha256.Sum256(label)
	return append(append(b, prefixLabel), h[:16]...)
}

func userPrefix(user string) []byte {
	return append(append([]byte{prefixUser}, user...), 0)
}

func withRef(prefix []byte, r hsm.KeyRef) []byte {
	return binary.BigEndian.AppendUint64(prefix, uint64(r))
}

func opKey(prefix byte, op hsm.OpID) []byte { return append([]byte{prefix}, op[:]...) }

func markTimeKey(millis uint64, op hsm.OpID) []byte {
	b := binary.BigEndian.AppendUint64([]byte{prefixMarkTime}, millis)
	return append(b, op[:]...)
}

// refOf reads the reference a key ends with.
func refOf(key []byte) (hsm.KeyRef, error) {
	if len(key) < 8 {
		return 0, fmt.Errorf("%w: key of %d bytes in the object store", hsm.ErrCorrupt, len(key))
	}
	return hsm.KeyRef(binary.BigEndian.Uint64(key[len(key)-8:])), nil
}

// prefixEnd is the first key after all that begin with prefix.
func prefixEnd(prefix []byte) []byte {
	end := append([]byte{}, prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// encodeDigest is the value under a digest key; decodeDigest is the inverse.
func encodeDigest(o hsm.Object) []byte {
	return appendDigest(make([]byte, 0, 2+len(o.Digest)), o)
}

func appendDigest(b []byte, o hsm.Object) []byte {
	b = append(b, byte(o.Kind), 0)
	if o.Tombstone {
		b[len(b)-1] = 1
	}
	return append(b, o.Digest[:]...)
}

func decodeDigest(ref hsm.KeyRef, b []byte) (hsm.Object, error) {
	if len(b) != 2+len(hsm.Digest{}) {
		return hsm.Object{}, fmt.Errorf("%w: digest of %s in the object store", hsm.ErrCorrupt, ref)
	}
	return hsm.Object{Ref: ref, Kind: hsm.Kind(b[0]), Tombstone: b[1] == 1, Digest: hsm.Digest(b[2:])}, nil
}
