package reconciletest

import (
	"crypto/rand"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// NewKey makes an AES-256 key with the label on this replica alone, and returns
// its reference.
func (r *Replica) NewKey(label string) hsm.KeyRef {
	ref := hsm.NewKeyRef()
	r.NewKeyAt(ref, label)
	return ref
}

// NewKeyAt makes a key under a reference, which the replica must not hold yet:
// for a conflict between two replicas.
func (r *Replica) NewKeyAt(ref hsm.KeyRef, label string) {
	material := make([]byte, 32)
	rand.Read(material)
	at := r.clock.Next()
	record := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref,
		Core: hsm.Core{
			Class: hsm.ClassSecret, Type: "aes", Size: len(material), Origin: hsm.MethodGenerate,
			Created: at, Owner: "owner", SensitiveAtBirth: true,
		},
		Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{},
		Material: hsm.NewSecret(material),
	}
	record.Set(hsm.AttributeRegister("label"), []byte(label), at)
	record.Set(hsm.AttributeRegister("encrypt"), hsm.BoolValue(true), at)
	birth, err := r.keyring.Birth(record)
	must(err)
	record.Birth = birth
	r.mu.Lock()
	defer r.mu.Unlock()
	must(r.merge(record, &hsm.Inserted{}))
}

// SetLabel changes a key's label on this replica alone. It panics if the
// replica does not hold the key; a tombstone stays as it is.
func (r *Replica) SetLabel(ref hsm.KeyRef, label string) {
	at := r.clock.Next()
	must(r.change(ref, func(record *hsm.Record) {
		if !record.Destroyed {
			record.Set(hsm.AttributeRegister("label"), []byte(label), at)
		}
	}))
}

// Destroy turns a key into its tombstone on this replica alone. It panics if
// the replica does not hold the key.
func (r *Replica) Destroy(ref hsm.KeyRef) { must(r.change(ref, (*hsm.Record).Destroy)) }

// Label returns a key's label, and false if the replica does not hold it.
func (r *Replica) Label(ref hsm.KeyRef) (string, bool) {
	o, ok := r.Get(ref)
	if !ok {
		return "", false
	}
	record, err := r.keyring.Unmask(o)
	must(err)
	return record.Text("label"), true
}

// At returns the i-th reference in ascending order, and false if there is none.
func (r *Replica) At(i int) (hsm.KeyRef, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i < 0 || i >= len(r.objects) {
		return 0, false
	}
	return r.list()[i].Ref, true
}

// Len returns the number of objects, tombstones included.
func (r *Replica) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.objects)
}

// must panics on what only a broken keyring or test can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
