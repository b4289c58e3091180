package pkcs11

import (
	"context"
	"crypto/mlkem"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// ML-DSA and ML-KEM as PKCS #11 v3.2 has them. The attributes of that version are
// not known to the protocol, which carries them as the bytes they are in memory: of
// this machine, since the socket is local.

// parameterSetInfo is one parameter set.
type parameterSetInfo struct {
	number     uint64 // CKP_…
	oid        asn1.ObjectIdentifier
	signature  int
	ciphertext int
}

func nistOID(arc, n int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, arc, n}
}

// parameterSets are those of a key type, by the HSM's size.
var parameterSets = map[string]map[int]parameterSetInfo{
	"ml-dsa": {44: {1, nistOID(3, 17), 2420, 0}, 65: {2, nistOID(3, 18), 3309, 0}, 87: {3, nistOID(3, 19), 4627, 0}},
	"ml-kem": {768: {2, nistOID(4, 2), 0, mlkem.CiphertextSize768}, 1024: {3, nistOID(4, 3), 0, mlkem.CiphertextSize1024}},
}

// sharedSecret is the length of what ML-KEM agrees on.
const sharedSecret = mlkem.SharedKeySize

// set reads CKA_PARAMETER_SET: the HSM's size.
func (t template) set(keyType string) (int, error) {
	b := t.bytes(ck.ParameterSet)
	if !t.has(ck.ParameterSet) {
		return 0, ck.TemplateIncomplete
	}
	if len(b) == 8 {
		for size, s := range parameterSets[keyType] {
			if s.number == binary.NativeEndian.Uint64(b) {
				return size, nil
			}
		}
	}
	return 0, ck.AttributeValueInvalid
}

// parameterSet reads the set of a pair, which may stand in both templates.
func parameterSet(r *hsm.CreateRequest, public, private template) (err error) {
	from := public
	if !public.has(ck.ParameterSet) {
		from = private
	}
	if r.Size, err = from.set(r.Type); err != nil {
		return err
	}
	if private.has(ck.ParameterSet) {
		if n, err := private.set(r.Type); err != nil || n != r.Size {
			return ck.TemplateInconsistent
		}
	}
	if public.has(ck.Seed) || private.has(ck.Seed) {
		return ck.TemplateInconsistent
	}
	return nil
}

// pqPublic makes SPKI of CKA_VALUE.
func (t template) pqPublic(r *hsm.CreateRequest) ([]byte, error) {
	size, err := t.set(r.Type)
	if err != nil {
		return nil, err
	}
	if len(t.bytes(ck.Value)) == 0 {
		return nil, ck.TemplateIncomplete
	}
	return marshal(spki{pkix.AlgorithmIdentifier{Algorithm: parameterSets[r.Type][size].oid}, bits(t.bytes(ck.Value))})
}

// pqPrivate makes PKCS #8 of CKA_SEED. CKA_VALUE, the expanded key, may stand beside it
// and is compared as far as the HSM does; without the seed it is not enough.
func (t template) pqPrivate(r *hsm.CreateRequest) ([]byte, error) {
	size, err := t.set(r.Type)
	if err != nil {
		return nil, err
	}
	seed, expanded := t.bytes(ck.Seed), t.bytes(ck.Value)
	if len(seed) == 0 {
		return nil, ck.TemplateIncomplete
	}
	var inner []byte
	if len(expanded) > 0 {
		inner, err = marshal(struct{ Seed, Expanded []byte }{seed, expanded})
	} else {
		inner, err = marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: seed})
	}
	if err != nil {
		return nil, err
	}
	defer clear(inner)
	return pkcs8Of(pkix.AlgorithmIdentifier{Algorithm: parameterSets[r.Type][size].oid}, inner)
}

// publicBits takes the key itself out of SPKI.
func publicBits(der []byte) ([]byte, error) {
	var v spki
	if _, err := asn1.Unmarshal(der, &v); err != nil {
		return nil, err
	}
	return v.Key.Bytes, nil
}

// pqAttribute: to encapsulate is everybody's who sees the public key; what the HSM
// calls derive is, of an ml-kem private key, to decapsulate.
func pqAttribute(k hsm.KeyInfo, t ck.Attr) rpc.Attribute {
	switch {
	case t == ck.ParameterSet:
		return blob(binary.NativeEndian.AppendUint64(nil, parameterSets[k.Type][k.Size].number))
	case t == ck.Encapsulate || k.Attributes["derive"] == "true":
		return blob([]byte{1})
	}
	return blob([]byte{0})
}

// pqUsage reads CKA_ENCAPSULATE and CKA_DECAPSULATE.
func pqUsage(at ck.Attr, a rpc.Attribute) (name, value string, err error) {
	switch {
	case len(a.Bytes) != 1 || a.Bytes[0] > 1:
		return "", "", ck.AttributeValueInvalid
	case at == ck.Decapsulate && a.Bytes[0] == 1:
		return "derive", "true", nil
	case at == ck.Decapsulate:
		return "derive", "false", nil
	case a.Bytes[0] == 0:
		return "", "", ck.TemplateInconsistent
	}
	return "", "", nil
}

// agreed reads what both functions are given: the key, and the secret key to make of the
// shared secret, all of it if its length is not given.
func (s *session) agreed(ctx context.Context, args rpc.Args, does uint64, attribute string, class hsm.Class) (*login, hsm.KeyInfo, hsm.CreateRequest, error) {
	var r hsm.CreateRequest
	m := args.Mechanism(1)
	known, p, err := paramsOf(m, does)
	if err != nil {
		return nil, hsm.KeyInfo{}, r, err
	}
	t, err := parseTemplate(args.Attributes(3))
	if err != nil {
		return nil, hsm.KeyInfo{}, r, err
	}
	if r, err = t.newSecret(); err != nil {
		return nil, hsm.KeyInfo{}, r, err
	}
	if r.Size = sharedSecret; t.has(ck.ValueLen) {
		r.Size = int(min(t[ck.ValueLen].Num, sharedSecret+1))
	}
	if r.Size < 1 || r.Size > sharedSecret {
		return nil, hsm.KeyInfo{}, r, ck.AttributeValueInvalid
	}
	l, err := s.begin(r.Token)
	if err != nil {
		return nil, hsm.KeyInfo{}, r, err
	}
	key, k, err := s.key(ctx, args.Ulong(2), ck.KeyHandleInvalid)
	if err != nil {
		return nil, k, r, err
	}
	if k.Class != class {
		return nil, k, r, ck.KeyTypeInconsistent
	}
	r.Key, r.Params = key.ref, p
	return l, k, r, allowed(k, m.Type, known, attribute, ck.KeyTypeInconsistent)
}

// encapsulateKey is C_EncapsulateKey. The public key is no secret, and the shared secret
// is made here, as the application itself might make it, and imported at once; as v3.2
// has it, the key is not local and was never always sensitive.
func (s *session) encapsulateKey(ctx context.Context, args rpc.Args) ([]any, error) {
	l, k, r, err := s.agreed(ctx, args, ck.MechEncapsulate, "", hsm.ClassPublic)
	if err != nil {
		return nil, err
	}
	n := parameterSets[k.Type][k.Size].ciphertext
	if !args.Room(4).Fits(n) {
		return []any{rpc.Size(n), uint64(0)}, nil
	}
	spki, err := l.Use(ctx, hsm.Use{Kind: hsm.UsePublic, Key: r.Key})
	if err != nil {
		return nil, err
	}
	shared, ciphertext, err := encapsulate(k.Size, spki)
	if err != nil {
		return nil, err
	}
	defer clear(shared)
	r.Method, r.Key, r.Params = hsm.MethodImport, 0, hsm.Params{}
	r.Data = hsm.NewSecret(append([]byte{}, shared[:r.Size]...))
	defer r.Data.Wipe()
	out, err := s.one(ctx, l, r, templateErrors)
	if err != nil {
		return nil, err
	}
	return []any{ciphertext, out[0]}, nil
}

func encapsulate(size int, spki []byte) (shared, ciphertext []byte, err error) {
	public, err := publicBits(spki)
	if err != nil {
		return nil, nil, err
	}
	if size == 768 {
		key, err := mlkem.NewEncapsulationKey768(public)
		if err != nil {
			return nil, nil, err
		}
		shared, ciphertext = key.Encapsulate()
		return shared, ciphertext, nil
	}
	key, err := mlkem.NewEncapsulationKey1024(public)
	if err != nil {
		return nil, nil, err
	}
	shared, ciphertext = key.Encapsulate()
	return shared, ciphertext, nil
}

// decapsulateKey is C_DecapsulateKey. The shared secret does not leave the HSM.
func (s *session) decapsulateKey(ctx context.Context, args rpc.Args) ([]any, error) {
	l, k, r, err := s.agreed(ctx, args, ck.MechDecapsulate, "derive", hsm.ClassPrivate)
	if err != nil {
		return nil, err
	}
	if len(args.Bytes(4)) != parameterSets[k.Type][k.Size].ciphertext {
		return nil, ck.WrappedKeyLenRange
	}
	r.Method, r.Params.Peer = hsm.MethodDerive, args.Bytes(4)
	return s.one(ctx, l, r, map[error]ck.RV{hsm.ErrInvalid: ck.AttributeValueInvalid, hsm.ErrCrypto: ck.WrappedKeyInvalid, hsm.ErrAttribute: ck.TemplateInconsistent,
		hsm.ErrDenied: ck.KeyFunctionNotPermitted})
}
