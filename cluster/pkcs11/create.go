package pkcs11

import (
	"context"
	"errors"
	"math/big"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// begin checks what every creation needs: a login, and for token objects a session
// that may write.
func (s *session) begin(token bool) (*login, error) {
	l, err := s.login()
	if err == nil && token && !s.rw {
		err = ck.SessionReadOnly
	}
	return l, err
}

// make makes objects on the HSMs and gives them handles, the private key of a pair
// first.
func (s *session) make(ctx context.Context, l *login, r hsm.CreateRequest) ([]*object, error) {
	made, err := l.Create(ctx, r, cluster.Policy{})
	if err != nil {
		return nil, err
	}
	owner := s
	if r.Token {
		owner = nil
	}
	out := make([]*object, len(made.Keys))
	for i, k := range made.Keys {
		out[i] = s.app.objects.note(s.slot, k.KeyInfo, owner, l)
	}
	return out, nil
}

// templateErrors is what errors of the HSM mean for a template.
var templateErrors = map[error]ck.RV{hsm.ErrInvalid: ck.AttributeValueInvalid, hsm.ErrAttribute: ck.TemplateInconsistent, hsm.ErrCrypto: ck.FunctionFailed}

// one is make for a single object.
func (s *session) one(ctx context.Context, l *login, r hsm.CreateRequest, meaning map[error]ck.RV) ([]any, error) {
	made, err := s.make(ctx, l, r)
	if err != nil {
		return nil, as(err, meaning)
	}
	return []any{made[0].handle}, nil
}

func (s *session) generateKey(ctx context.Context, args rpc.Args) ([]any, error) {
	m := args.Mechanism(1)
	known, _, err := paramsOf(m, ck.MechGenerate)
	if err != nil {
		return nil, vendorKeys(m, args.Attributes(2), err)
	}
	t, err := parseTemplate(args.Attributes(2))
	if err != nil {
		return nil, err
	}
	keyType, err := t.keyType(known.types[0])
	if err != nil || keyType != known.types[0] || t.has(ck.Class) && t[ck.Class].Num != ck.ObjectSecretKey || t.has(ck.Value) {
		return nil, ck.TemplateInconsistent
	}
	l, err := s.begin(t.flag(ck.Token))
	if err != nil {
		return nil, err
	}
	size, err := t.length(keyType)
	if err != nil {
		return nil, err
	}
	r := hsm.CreateRequest{Method: hsm.MethodGenerate, Token: t.flag(ck.Token), Type: keyType, Size: size}
	if r.Attributes, err = t.wanted(hsm.ClassSecret, keyType); err != nil {
		return nil, err
	}
	return s.one(ctx, l, r, templateErrors)
}

// length is how long a secret key is to be; des3 keys have one length.
func (t template) length(keyType string) (int, error) {
	switch {
	case t.has(ck.ValueLen):
		return int(min(t[ck.ValueLen].Num, 1<<20)), nil
	case keyType == "des3":
		return 24, nil
	}
	return 0, ck.TemplateIncomplete
}

func (s *session) generateKeyPair(ctx context.Context, args rpc.Args) ([]any, error) {
	known, _, err := paramsOf(args.Mechanism(1), ck.MechGeneratePair)
	if err != nil {
		return nil, err
	}
	public, err := parseTemplate(args.Attributes(2))
	if err != nil {
		return nil, err
	}
	private, err := parseTemplate(args.Attributes(3))
	if err != nil {
		return nil, err
	}
	r, err := pairRequest(known.types[0], public, private)
	if err != nil {
		return nil, err
	}
	l, err := s.begin(r.Token)
	if err != nil {
		return nil, err
	}
	made, err := s.make(ctx, l, r)
	if err != nil {
		return nil, as(err, templateErrors)
	}
	return []any{made[1].handle, made[0].handle}, nil
}

// pairRequest reads both templates of a pair. Both halves are token objects, or
// neither is: an HSM makes them as one.
func pairRequest(keyType string, public, private template) (r hsm.CreateRequest, err error) {
	for _, v := range []struct {
		t     template
		class uint64
	}{{public, ck.ObjectPublicKey}, {private, ck.ObjectPrivateKey}} {
		if v.t.has(ck.Class) && v.t[ck.Class].Num != v.class {
			return r, ck.TemplateInconsistent
		}
		if given, err := v.t.keyType(keyType); err != nil || given != keyType {
			return r, ck.TemplateInconsistent
		}
	}
	r = hsm.CreateRequest{Method: hsm.MethodGenerate, Token: private.flag(ck.Token), Type: keyType}
	if public.flag(ck.Token) != r.Token {
		return r, ck.TemplateInconsistent
	}
	switch {
	case keyType == "rsa":
		err = rsaSize(&r, public)
	case parameterSets[keyType] != nil:
		err = parameterSet(&r, public, private)
	default:
		err = curveSize(&r, public, private)
	}
	if err != nil {
		return r, err
	}
	if r.Public, err = public.wanted(hsm.ClassPublic, keyType); err != nil {
		return r, err
	}
	for _, name := range []string{"label", "id"} { // the HSM would take those of the private key
		if _, given := r.Public[name]; !given {
			r.Public[name] = ""
		}
	}
	r.Attributes, err = private.wanted(hsm.ClassPrivate, keyType)
	return r, err
}

func rsaSize(r *hsm.CreateRequest, public template) error {
	if !public.has(ck.ModulusBits) {
		return ck.TemplateIncomplete
	}
	r.Size = int(min(public[ck.ModulusBits].Num, 1<<20))
	e := new(big.Int).SetBytes(public.bytes(ck.PublicExponent))
	if public.has(ck.PublicExponent) && e.Cmp(big.NewInt(65537)) != 0 {
		return ck.AttributeValueInvalid // the HSM makes keys with this one
	}
	return nil
}

func curveSize(r *hsm.CreateRequest, public, private template) error {
	params := public.bytes(ck.ECParams)
	if len(params) == 0 {
		params = private.bytes(ck.ECParams)
	}
	if len(params) == 0 {
		return ck.TemplateIncomplete
	}
	curve, ok := curveOf(params)
	switch {
	case !ok:
		return unknownCurve(params)
	case (curve == "ed25519") != (r.Type == "ed25519"):
		return ck.CurveNotSupported
	}
	if r.Type == "ec" {
		r.Curve = curve
	}
	return nil
}

func (s *session) createObject(ctx context.Context, args rpc.Args) ([]any, error) {
	t, err := parseTemplate(args.Attributes(1))
	if err != nil {
		return nil, err
	}
	if !t.has(ck.Class) {
		return nil, ck.TemplateIncomplete
	}
	l, err := s.begin(t.flag(ck.Token))
	if err != nil {
		return nil, err
	}
	r := hsm.CreateRequest{Method: hsm.MethodImport, Token: t.flag(ck.Token)}
	if err := t.material(&r); err != nil {
		return nil, err
	}
	defer r.Data.Wipe()
	attributesType := r.Type
	if r.Attributes, err = t.wanted(r.Class, attributesType); err != nil {
		return nil, err
	}
	return s.one(ctx, l, r, templateErrors)
}

func (s *session) destroyObject(ctx context.Context, args rpc.Args) ([]any, error) {
	o, k, err := s.object(ctx, args.Ulong(1), fresh)
	if err != nil {
		return nil, err
	}
	l, err := s.begin(k.Token)
	switch {
	case err != nil:
		return nil, err
	case k.Attributes["destroyable"] == "false":
		return nil, ck.ActionProhibited
	}
	_, err = l.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: o.ref})
	if err == nil || errors.Is(err, hsm.ErrDestroyed) {
		s.app.objects.remove(o)
	}
	return nil, as(err, map[error]ck.RV{hsm.ErrAttribute: ck.ActionProhibited, hsm.ErrDenied: ck.ActionProhibited})
}

func (s *session) getObjectSize(ctx context.Context, args rpc.Args) ([]any, error) {
	_, k, err := s.object(ctx, args.Ulong(1), fresh)
	if err != nil {
		return nil, err
	}
	size := k.Size
	if k.Type == "rsa" {
		size /= 8
	}
	for _, v := range k.Attributes {
		size += len(v)
	}
	return []any{uint64(size)}, nil
}
