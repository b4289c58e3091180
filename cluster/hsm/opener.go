package hsm

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"slices"
	"strings"
)

// Glance is what a store notes of an object beside its bytes.
type Glance struct {
	Cluster ClusterID
	Latest  Stamp // for the clock to observe
	Owner   string
	Label   []byte   // may alias the masked object
	Shares  []string // users it is shared with, sorted
	Shown   bool     // to every crypto user
}

// Glance tells of a record what Opener.Glance tells of its masked object.
func (r *Record) Glance() Glance {
	return Glance{Cluster: r.Cluster, Latest: r.Latest(), Owner: r.Core.Owner, Label: r.Registers[registerLabel].Value, Shares: r.Shares(), Shown: r.Shown()}
}

// Opener opens many masked objects one after the other. It is not safe for concurrent
// use: take one for each worker.
type Opener struct {
	keyring *Keyring
	mac     hash.Hash // under the keyring's key for synthetic IVs
	hidden  []byte    // scratch, wiped after every object
	length  [8]byte   // scratch
	view    glimpse   // scratch
}

// NewOpener returns an opener of the lineage's objects.
func (k *Keyring) NewOpener() *Opener {
	return &Opener{keyring: k, mac: hmac.New(sha256.New, k.mac.Reveal())}
}

// Glance opens, authenticates and checks a masked object as Unmask does, and refuses what
// Unmask refuses, with its errors. It keeps nothing of what is sealed, and makes no
// record: most of what a record costs is to lay its attributes out in maps. Only Label
// of what it returns shares memory with the object.
func (o *Opener) Glance(m MaskedObject) (Glance, error) {
	if g, ok := o.live(m); ok {
		return g, nil
	}
	r, err := o.keyring.Unmask(m) // a tombstone, or one with rivals, or none to accept: Unmask tells
	if err != nil {
		return Glance{}, err
	}
	return r.Glance(), nil
}

// live does it for a live object that nobody had to decide about; of others, and of all
// that does not open, it says no more than that.
func (o *Opener) live(m MaskedObject) (Glance, bool) {
	env, err := openEnvelope(m.Bytes)
	if err != nil || env.version != versionPlain || env.epoch == noEpoch || len(env.sealed) == 0 {
		return Glance{}, false
	}
	v := &o.view
	*v = glimpse{}
	if !v.read(env.clear) || v.record.Destroyed {
		return Glance{}, false
	}
	k := o.keyring
	if v.lineage != k.lineage || m.Lineage != k.lineage || m.Object != env.object(&v.record) || !o.open(&env) {
		return Glance{}, false
	}
	authentic := subtle.ConstantTimeCompare(o.siv(env.clear), env.siv) == 1 && v.readHidden(o.hidden)
	clear(o.hidden)
	return v.glance(), authentic
}

// open decrypts what is sealed into the scratch.
func (o *Opener) open(env *envelope) bool {
	aead, err := o.keyring.aead(env.epoch, env.siv)
	if err != nil {
		return false
	}
	hidden, err := aead.Open(o.hidden[:0], nonce[:], env.sealed, env.clear)
	if err != nil {
		return false
	}
	o.hidden = hidden
	return true
}

// siv is Keyring.siv of the clear part and what has been decrypted.
func (o *Opener) siv(clearBytes []byte) []byte {
	o.mac.Reset()
	o.mac.Write(sivHeader)
	for _, part := range [2][]byte{clearBytes, o.hidden} {
		binary.BigEndian.PutUint64(o.length[:], uint64(len(part)))
		o.mac.Write(o.length[:])
		o.mac.Write(part)
	}
	return o.mac.Sum(o.view.sum[:0])
}

// glimpse reads a clear part as claim does, its registers aside, of which it takes what
// Glance tells.
type glimpse struct {
	claim
	latest  Stamp
	label   []byte
	shares  []string
	private bool
	sum     [sivSize]byte // scratch
}

// read tells whether the clear part decodes to a claim that is in order, and which Glance
// can make do with.
func (v *glimpse) read(b []byte) bool {
	in := reader{b: b}
	seen := in.fields(func(key uint64) { v.decodeField(&in, key) })
	return in.done() && seen&clearRequired == clearRequired && v.record.checkShape() == nil
}

func (v *glimpse) decodeField(in *reader, key uint64) {
	switch key {
	case keyRegisters:
		in.eachRegister(v.register)
	case keyStanding, keyRivals: // there is more to check then
		in.fail()
	default:
		v.claim.decodeField(in, key)
	}
}

// readHidden tells whether what was sealed decodes.
func (v *glimpse) readHidden(b []byte) bool {
	in := reader{b: b}
	in.fields(func(key uint64) {
		switch key {
		case hiddenMaterial:
			in.data()
		case hiddenRegisters:
			in.eachRegister(func(_ []byte, reg Register) { v.observe(reg.Stamp) })
		default:
			in.fail()
		}
	})
	return in.done()
}

func (v *glimpse) register(name []byte, reg Register) {
	v.observe(reg.Stamp)
	switch string(name) {
	case registerLabel:
		v.label = reg.Value
	case registerPrivate:
		v.private = reg.Bool()
	default:
		if user, ok := bytes.CutPrefix(name, sharePrefixBytes); ok && reg.Bool() {
			v.shares = append(v.shares, string(user))
		}
	}
}

func (v *glimpse) observe(s Stamp) {
	if s.Compare(v.latest) > 0 {
		v.latest = s
	}
}

func (v *glimpse) glance() Glance {
	v.observe(v.record.Core.Created)
	slices.SortFunc(v.shares, strings.Compare)
	return Glance{
		Cluster: v.record.Cluster, Latest: v.latest, Owner: v.record.Core.Owner, Label: v.label, Shares: v.shares,
		Shown: v.record.Core.shown(v.private),
	}
}
