package hsm

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
)

// MaxEpoch is the highest epoch of a masking key: numbers up to it survive JSON.
const MaxEpoch = 1<<53 - 1

// maxEpochAhead is how far in the future a masking key may have been made, by its
// epoch, that an HSM adopts: clocks are wrong, but not by years.
const maxEpochAhead = 365 * 24 * time.Hour

// KeySize is the size in bytes of the lineage secret and of a masking key.
const KeySize = 32

// Keyring holds what a lineage shares and never shows: the lineage secret,
// which never changes, and the masking keys by epoch, of which one
// seals: the highest, unless Sealing says otherwise. Everything else is derived from the lineage secret with HKDF-SHA-256
// (RFC 5869) under distinct labels:
//
//	mask mac     HMAC-SHA-256 key that makes synthetic IVs and births
//	signing      Ed25519 seed; its public key's fingerprint is the lineage
//	root, sketch fingerprint keys
//	ticket       per cluster: HMAC key of login tickets
//	pack         seeds of the identities that read the lineage's packs
//
// A Keyring is immutable and safe for concurrent use. It shares no bytes with
// what it was opened from or exports. It prints as [redacted].
type Keyring struct {
	lineage Lineage
	secret  Secret
	masking map[uint64]Secret
	epoch   uint64
	mac     Secret
	signing Secret // Ed25519 private key
}

// NewKeyring draws a new lineage with one masking key, epoch 1.
func NewKeyring() *Keyring {
	secret, masking := make([]byte, KeySize), make([]byte, KeySize)
	rand.Read(secret)
	rand.Read(masking)
	k, err := OpenKeyring(NewSecret(secret), map[uint64]Secret{1: NewSecret(masking)})
	if err != nil {
		panic(err) // sizes are right by construction
	}
	return k
}

// OpenKeyring rebuilds a keyring from what a seal or an envelope holds.
// ErrInvalid if a key has the wrong size, an epoch is 0 or above MaxEpoch, or there
// is no masking key.
func OpenKeyring(secret Secret, masking map[uint64]Secret) (*Keyring, error) {
	if secret.Len() != KeySize || len(masking) == 0 {
		return nil, fmt.Errorf("%w: keyring: want a lineage secret of %d bytes and a masking key", ErrInvalid, KeySize)
	}
	k := &Keyring{secret: secret.clone(), masking: make(map[uint64]Secret, len(masking))}
	for epoch, m := range masking {
		if m.Len() != KeySize || epoch == noEpoch || epoch > MaxEpoch {
			return nil, fmt.Errorf("%w: keyring: masking key of epoch %d: want %d bytes and an epoch from 1 to 2^53-1", ErrInvalid, epoch, KeySize)
		}
		k.masking[epoch] = m.clone()
		k.epoch = max(k.epoch, epoch)
	}
	k.mac = NewSecret(k.derive("mask mac", KeySize))
	seed := k.derive("signing", ed25519.SeedSize)
	defer clear(seed)
	k.signing = NewSecret(ed25519.NewKeyFromSeed(seed))
	k.lineage = LineageOf(k.public())
	return k, nil
}

// public returns the public half of the signing key, in a slice of its own.
func (k *Keyring) public() []byte {
	return slices.Clone(ed25519.PrivateKey(k.signing.Reveal()).Public().(ed25519.PublicKey))
}

// LineageOf returns the lineage that a signing key's public half stands for.
func LineageOf(public []byte) Lineage {
	h := sha256.Sum256(public)
	return Lineage(h[:16])
}

func (k *Keyring) derive(label string, n int) []byte {
	b, err := hkdf.Key(sha256.New, k.secret.Reveal(), nil, "hsmbackup v1 "+label, n)
	if err != nil {
		panic(err) // only for absurd lengths
	}
	return b
}

// Lineage returns the fingerprint of the keyring.
func (k *Keyring) Lineage() Lineage { return k.lineage }

// Epoch returns the epoch of the masking key that seals.
func (k *Keyring) Epoch() uint64 { return k.epoch }

// FingerprintKeys returns the keys of root and sketch.
func (k *Keyring) FingerprintKeys() FingerprintKeys {
	return FingerprintKeys{Root: [32]byte(k.derive("root", 32)), Sketch: [16]byte(k.derive("sketch", 16))}
}

// Export returns the lineage secret and the masking keys, for a seal or an
// envelope and for nothing else.
func (k *Keyring) Export() (Secret, map[uint64]Secret) {
	masking := make(map[uint64]Secret, len(k.masking))
	for epoch, m := range k.masking {
		masking[epoch] = m.clone()
	}
	return k.secret.clone(), masking
}

// Epochs lists the epochs of all masking keys, ascending.
func (k *Keyring) Epochs() []uint64 { return slices.Sorted(maps.Keys(k.masking)) }

// TicketKey returns the key under which the HSMs of one cluster vouch for each
// other's logins.
func (k *Keyring) TicketKey(c ClusterID) Secret {
	return NewSecret(k.derive("ticket "+c.String(), KeySize))
}

// Sealing returns the keyring with another of its masking keys as the one that
// seals. ErrMaskingKey if it is not in it.
func (k *Keyring) Sealing(epoch uint64) (*Keyring, error) {
	if _, ok := k.masking[epoch]; !ok {
		return nil, maskingKeyError(epoch)
	}
	c := *k
	c.epoch = epoch
	return &c, nil
}

// Rotated returns the keyring with one masking key more, which does not seal yet:
// before one HSM seals under it, all have to hold it. Its epoch is the second of
// its making and a random number, so that clones that rotate on their own do not
// give one epoch to two keys, and later ones are larger; it stays below 2^53,
// for the sake of JSON. ErrInvalid if no such number is left.
func (k *Keyring) Rotated(now time.Time) (*Keyring, error) {
	masking, salt := make([]byte, KeySize), make([]byte, 4)
	rand.Read(masking)
	rand.Read(salt)
	last := slices.Max(k.Epochs())
	epoch := max(epochAt(now)|uint64(binary.BigEndian.Uint32(salt)>>12), last+1) // last is at most MaxEpoch
	if epoch > MaxEpoch {
		return nil, fmt.Errorf("%w: masking key of epoch %d: there is no later epoch; set the clock of this HSM right, or leave the lineage", ErrInvalid, last)
	}
	c := *k
	c.masking = maps.Clone(k.masking)
	c.masking[epoch] = NewSecret(masking)
	return &c, nil
}

// epochAt is the first epoch of a second.
func epochAt(t time.Time) uint64 { return uint64(min(max(t.Unix(), 0), MaxEpoch>>19)) << 20 }

// CheckEpochs refuses a keyring with a masking key that says it will be made in
// more than a year: once adopted it would be the newest for ever, and leave few
// numbers, or none, for those to come. ErrFuture.
func (k *Keyring) CheckEpochs(now time.Time) error {
	if last := slices.Max(k.Epochs()); last > epochAt(now.Add(maxEpochAhead)) {
		return fmt.Errorf("%w: masking key of epoch %d is of %s; check the clocks of both HSMs", ErrFuture, last, time.Unix(int64(last>>20), 0).UTC().Format(time.DateOnly))
	}
	return nil
}

// Join returns the keyring with the masking keys of both; what seals stays. It is
// k itself if it holds them all. ErrLineage if o is of another lineage;
// ErrConflict if they hold two keys for one epoch.
func (k *Keyring) Join(o *Keyring) (*Keyring, error) {
	if o.lineage != k.lineage {
		return nil, fmt.Errorf("%w: the masking keys are of %s, not of %s", ErrLineage, o.lineage, k.lineage)
	}
	c := *k
	c.masking = maps.Clone(k.masking)
	for epoch, theirs := range o.masking {
		if ours, ok := c.masking[epoch]; ok && !ours.Equal(theirs) {
			return nil, fmt.Errorf("%w: two masking keys of epoch %d", ErrConflict, epoch)
		}
		c.masking[epoch] = theirs.clone()
	}
	if len(c.masking) == len(k.masking) {
		return k, nil
	}
	return &c, nil
}

// PackSeed returns the 32-byte seed of the lineage's own identity of one kind
// for the packs of its snapshots (backup/FORMAT.md §3). It never changes, so
// whoever opens any recovery envelope of the lineage reads every pack of it.
func (k *Keyring) PackSeed(kind string) Secret { return NewSecret(k.derive("pack "+kind, KeySize)) }

// Sign signs message for a purpose. A purpose that is empty or contains a NUL
// has no signature: the result then has no Signature and verifies nowhere.
func (k *Keyring) Sign(p Purpose, message []byte) LineageSignature {
	s := LineageSignature{Public: k.public()}
	if p.valid() {
		s.Signature = ed25519.Sign(k.signing.Reveal(), purposeMessage(p, message))
	}
	return s
}

// Verify checks that the signature was made for this purpose and message by
// the lineage l. ErrLineage if the key is another lineage's, ErrSignature if
// the signature does not verify.
func (s LineageSignature) Verify(l Lineage, p Purpose, message []byte) error {
	if len(s.Public) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: public key of %d bytes", ErrSignature, len(s.Public))
	}
	if got := LineageOf(s.Public); got != l {
		return fmt.Errorf("%w: signed by %s, want %s", ErrLineage, got, l)
	}
	if !p.valid() || !ed25519.Verify(s.Public, purposeMessage(p, message), s.Signature) {
		return fmt.Errorf("%w: %s of %s", ErrSignature, quote(string(p)), l)
	}
	return nil
}

// valid tells whether the purpose separates: NUL ends it in what is signed.
func (p Purpose) valid() bool { return p != "" && !strings.ContainsRune(string(p), 0) }

func purposeMessage(p Purpose, message []byte) []byte {
	return slices.Concat([]byte("hsmbackup v1 "+string(p)+"\x00"), message)
}

// Birth computes a record's birth from its kind, reference, core and material.
// ErrInvalid if the record has no masked form.
func (k *Keyring) Birth(r *Record) ([16]byte, error) {
	if err := r.check(); err != nil {
		return [16]byte{}, fmt.Errorf("%w: birth of %s %s: %w", ErrInvalid, r.Kind, r.Ref, err)
	}
	m := hmac.New(sha256.New, k.mac.Reveal())
	m.Write([]byte("hsmbackup birth v1\x00"))
	ref := binary.BigEndian.AppendUint64(nil, uint64(r.Ref))
	writeLengthPrefixed(m, []byte{byte(r.Kind)}, ref, appendCore(nil, &r.Core), r.Material.Reveal())
	return [16]byte(m.Sum(nil)[:16]), nil
}

// Format keeps the keyring out of every output of fmt.
func (k Keyring) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// String names the lineage and nothing else.
func (k Keyring) String() string { return "[redacted keyring of " + k.lineage.String() + "]" }

// LogValue is String, for slog.
func (k Keyring) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText refuses, and with it encoding/json.
func (k Keyring) MarshalText() ([]byte, error) {
	return nil, errors.New("hsm: a keyring is not to be marshalled")
}

// MarshalBinary refuses, and with it gob and CBOR.
func (k Keyring) MarshalBinary() ([]byte, error) { return k.MarshalText() }

// Format keeps the keys out of every output of fmt that asks for it.
func (FingerprintKeys) Format(f fmt.State, _ rune) { io.WriteString(f, "[redacted]") }
