package soft

import (
	"bytes"
	"cmp"
	"encoding/asn1"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// newborn is a key about to become a record.
type newborn struct {
	class  hsm.Class
	spec   mech.Spec
	secret []byte // raw, or PKCS #8; nil for a public key
	public []byte // SPKI; nil for a secret key
	kcv    []byte // check value, if it is known already
	origin hsm.Method
	base   *hsm.Record // derive: the base key
	// careful: it was unwrapped with a trusted key.
	careful bool
}

// generated makes fresh key material; a pair comes as private key, public key.
func generated(r hsm.CreateRequest) ([]newborn, error) {
	g, err := mech.Generate(nil, mech.Spec{Type: mech.KeyType(r.Type), Size: r.Size, Curve: mech.Curve(r.Curve)})
	if err != nil {
		return nil, mechanism(err)
	}
	b := newborn{class: hsm.ClassSecret, spec: g.Spec, secret: g.Secret, public: g.Public, origin: hsm.MethodGenerate}
	if g.Public == nil {
		return []newborn{b}, nil
	}
	b.kcv = g.Check
	public := b
	b.class, public.class, public.secret = hsm.ClassPrivate, hsm.ClassPublic, nil
	return []newborn{b, public}, nil
}

// imported reads key material in clear.
func imported(r hsm.CreateRequest, origin hsm.Method) (newborn, error) {
	if r.Class != "" && !r.Class.IsKey() {
		return thing(r, origin)
	}
	k, err := mech.ParseImport(mech.KeyType(r.Type), r.Data.Reveal())
	if err != nil {
		return newborn{}, mechanism(err)
	}
	b := newborn{class: hsm.Class(k.Class), spec: k.Spec, secret: k.Secret, public: k.Public, origin: origin}
	return b, b.check(r)
}

// thing reads what is no key: data, or a certificate, of which only the outermost
// structure is looked at.
func thing(r hsm.CreateRequest, origin hsm.Method) (newborn, error) {
	b := newborn{class: r.Class, spec: mech.Spec{Type: mech.KeyType(r.Class), Size: r.Data.Len()}, secret: bytes.Clone(r.Data.Reveal()), origin: origin}
	switch {
	case origin != hsm.MethodImport:
		return b, fmt.Errorf("%w: %s objects are imported", hsm.ErrInvalid, r.Class)
	case len(b.secret) > hsm.MaxValue:
		return b, fmt.Errorf("%w: a %s object of %d bytes, at most %d", hsm.ErrInvalid, r.Class, len(b.secret), hsm.MaxValue)
	case r.Class == hsm.ClassData:
		return b, nil
	}
	var outer asn1.RawValue
	b.spec.Type = "x-509"
	if rest, err := asn1.Unmarshal(b.secret, &outer); err != nil || len(rest) > 0 || outer.Tag != asn1.TagSequence {
		return b, fmt.Errorf("%w: the data is not a certificate in DER", hsm.ErrInvalid)
	}
	return b, nil
}

// copied is another object with the same contents.
func (s *session) copied(r hsm.CreateRequest) (newborn, map[string]string, error) {
	e, a, err := s.lookup(r.Key)
	switch {
	case err != nil:
		return newborn{}, nil, err
	case a != accessOwner && !e.rec.Shown():
		return newborn{}, nil, fmt.Errorf("%w: %s belongs to %q; only its owner copies it", hsm.ErrDenied, r.Key, e.rec.Core.Owner)
	case !e.rec.Copyable():
		return newborn{}, nil, fmt.Errorf("%w: %s is not copyable: it says so, or never was extractable", hsm.ErrAttribute, r.Key)
	}
	wanted, err := copiedAttributes(e.rec, r)
	core := e.rec.Core
	return newborn{
		class: core.Class, spec: mech.Spec{Type: mech.KeyType(core.Type), Size: core.Size, Curve: mech.Curve(core.Curve)}, origin: core.Origin,
		secret: bytes.Clone(e.rec.Material.Reveal()), public: bytes.Clone(core.Public), base: e.rec,
	}, wanted, err
}

// copiedAttributes are those of the object, but for what the request wants. What changes
// one way only does so in a copy too.
func copiedAttributes(r *hsm.Record, req hsm.CreateRequest) (map[string]string, error) {
	wanted := map[string]string{}
	for name, v := range r.Info(hsm.Digest{}).Attributes {
		if a, err := hsm.LookupAttribute(name); err == nil && a.AtCreation && a.Stored {
			wanted[name] = v
		}
	}
	for name, v := range req.Attributes {
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return nil, err
		}
		was := wanted[name] == "true"
		if a.Most > 0 {
			if err := notLower(a, wanted[name], v); err != nil {
				return nil, err
			}
		}
		if a.Stored && name != "copyable" && (v == "false" || v == "true") && !a.MayTurn(was, v == "true") {
			return nil, fmt.Errorf("%w: %s is %t, and stays so in a copy", hsm.ErrAttribute, name, was)
		}
		wanted[name] = v
	}
	return wanted, nil
}

// check compares what was found with what was asked for.
func (b newborn) check(r hsm.CreateRequest) error {
	if r.Class != "" && r.Class != b.class {
		return fmt.Errorf("%w: the data is a %s, not a %s", hsm.ErrInvalid, b.class, r.Class)
	}
	if r.Size != 0 && r.Size != b.spec.Size {
		return fmt.Errorf("%w: the key's size is %d, not %d", hsm.ErrInvalid, b.spec.Size, r.Size)
	}
	if r.Curve == "" {
		return nil
	}
	if c, err := mech.ParseCurve(r.Curve); err != nil || c != b.spec.Curve {
		return fmt.Errorf("%w: the key's curve is %q, not %q", hsm.ErrInvalid, b.spec.Curve, r.Curve)
	}
	return nil
}

// unwrapped reads a wrapped key.
func (s *session) unwrapped(r hsm.CreateRequest) (newborn, map[string]string, error) {
	e, err := s.usable(r.Key, accessOwner, "unwrap")
	if err != nil {
		return newborn{}, nil, err
	}
	careful, err := s.h.trusted(e.rec)
	if err == nil && careful {
		err = mayUnwrapTrusted(e.rec, r.Params)
	}
	if err != nil {
		return newborn{}, nil, err
	}
	m, err := e.parsed()
	if err != nil {
		return newborn{}, nil, err
	}
	var payload []byte
	switch p := cryptParams(r.Params); {
	case m.secret != nil:
		payload, err = m.secret.Unwrap(nil, p, r.Data.Reveal())
	case m.private != nil:
		payload, err = m.private.Unwrap(nil, p, r.Data.Reveal())
	default:
		err = fmt.Errorf("%w: a public key does not unwrap; name the private key", mech.ErrMechanism)
	}
	if err != nil {
		return newborn{}, nil, mechanism(err)
	}
	defer clear(payload)
	clearKey := r
	clearKey.Data = hsm.NewSecret(payload)
	b, err := imported(clearKey, hsm.MethodUnwrap)
	if err != nil {
		return newborn{}, nil, err
	}
	if b.careful = careful; b.class == hsm.ClassPublic {
		return newborn{}, nil, fmt.Errorf("%w: the data is a public key, which is imported, not unwrapped", hsm.ErrInvalid)
	}
	wanted, err := withTemplate(hsm.UnwrapTemplate, e.rec, r, b)
	return b, wanted, err
}

// The names of the derivations.
const (
	deriveECDH   = "ecdh"
	deriveSP108  = "sp800-108-counter"
	deriveMLKEM  = "ml-kem"
	deriveChoice = deriveECDH + ", " + deriveSP108 + ", " + deriveMLKEM
)

// derived derives a secret key from another key: from an EC key and a peer's
// public key by ECDH, with the X9.63 KDF if Hash is set; from a secret key by
// the counter mode of SP 800-108, with SharedInfo as label.
func (s *session) derived(r hsm.CreateRequest) (newborn, map[string]string, error) {
	spec := mech.Spec{Type: mech.KeyType(r.Type), Size: r.Size}
	if !spec.Type.Secret() {
		return newborn{}, nil, fmt.Errorf("%w: key type %q: only aes, des3 and generic-secret keys are derived", hsm.ErrInvalid, r.Type)
	}
	if err := spec.Validate(); err != nil {
		return newborn{}, nil, mechanism(err)
	}
	e, err := s.usable(r.Key, accessOwner, "derive")
	if err != nil {
		return newborn{}, nil, err
	}
	m, err := e.parsed()
	if err != nil {
		return newborn{}, nil, err
	}
	key, err := derive(m, r)
	if err != nil {
		return newborn{}, nil, mechanism(err)
	}
	if err := mech.FinishDerived(spec.Type, key); err != nil {
		return newborn{}, nil, mechanism(err)
	}
	b := newborn{class: hsm.ClassSecret, spec: spec, secret: key, origin: hsm.MethodDerive, base: e.rec}
	wanted, err := withTemplate(hsm.DeriveTemplate, e.rec, r, b)
	return b, wanted, err
}

func derive(m material, r hsm.CreateRequest) ([]byte, error) {
	p := r.Params
	switch {
	case p.Mechanism == deriveECDH && m.private != nil:
		return deriveShared(m.private, r)
	case p.Mechanism == deriveSP108 && m.secret != nil:
		base := m.secret.Raw()
		defer clear(base)
		return mech.SP800108Counter(cmp.Or(p.Hash, "sha256"), base, p.SharedInfo, p.Context, r.Size)
	case p.Mechanism == deriveMLKEM && m.private != nil:
		return decapsulated(m.private, r)
	case p.Mechanism == deriveECDH:
		return nil, fmt.Errorf("%w: ecdh needs an ec private key", mech.ErrMechanism)
	case p.Mechanism == deriveSP108:
		return nil, fmt.Errorf("%w: %s needs a secret key", mech.ErrMechanism, deriveSP108)
	case p.Mechanism == deriveMLKEM:
		return nil, fmt.Errorf("%w: %s needs an ml-kem private key", mech.ErrMechanism, deriveMLKEM)
	}
	return nil, fmt.Errorf("%w: %.40q does not derive; there are %s", mech.ErrMechanism, p.Mechanism, deriveChoice)
}

// decapsulated is C_DecapsulateKey with CKM_ML_KEM: the shared secret, or its
// leading bytes.
func decapsulated(k *mech.PrivateKey, r hsm.CreateRequest) ([]byte, error) {
	shared, err := k.Decapsulate(r.Params.Peer)
	if err != nil {
		return nil, err
	}
	defer clear(shared)
	if r.Size > len(shared) {
		return nil, fmt.Errorf("%w: the shared secret has %d bytes, %d are wanted", mech.ErrKeySize, len(shared), r.Size)
	}
	return append([]byte{}, shared[:r.Size]...), nil
}

// deriveShared is CKM_ECDH1_DERIVE: without a KDF the shared secret's leading
// bytes are cut off (PKCS #11 v2.40 §2.3.9).
func deriveShared(k *mech.PrivateKey, r hsm.CreateRequest) ([]byte, error) {
	z, err := k.ECDH(r.Params.Peer)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	if r.Params.Hash != "" {
		return mech.X963KDF(r.Params.Hash, z, r.Params.SharedInfo, r.Size)
	}
	if r.Size > len(z) {
		return nil, fmt.Errorf("%w: the shared secret has %d bytes, %d are wanted; name a hash for the KDF", mech.ErrKeySize, len(z), r.Size)
	}
	return append([]byte{}, z[len(z)-r.Size:]...), nil
}

func cryptParams(p hsm.Params) mech.CryptParams {
	return mech.CryptParams{Mechanism: p.Mechanism, AAD: p.AAD, Hash: p.Hash, IV: p.IV, TagLength: p.TagLength, CounterBits: p.CounterBits}
}

func signParams(p hsm.Params) mech.SignParams {
	return mech.SignParams{Mechanism: p.Mechanism, Hash: p.Hash, Digest: p.Digest, SaltLength: p.SaltLength, Context: p.Context, MACLength: p.TagLength}
}

// checkValue returns the key check value.
func (b newborn) checkValue() ([]byte, error) {
	if !b.class.IsKey() || b.kcv != nil {
		return b.kcv, nil
	}
	var check []byte
	var err error
	if b.class == hsm.ClassSecret {
		check, err = mech.CheckValueSecret(b.spec.Type, b.secret)
	} else {
		check, err = mech.CheckValuePublic(b.public)
	}
	return check, mechanism(err)
}
