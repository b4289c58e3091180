package pkcs11

import (
	"context"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// allowed checks that a key is of the mechanism's type, has the attribute that lets it be
// used so, and lets the mechanism be used.
func allowed(k hsm.KeyInfo, m ck.Mech, known mechanism, attribute string, wrongType ck.RV) error {
	fits := false
	for _, t := range known.types {
		fits = fits || t == k.Type
	}
	if !fits {
		return wrongType
	}
	if attribute != "" && k.Attributes[attribute] != "true" {
		return ck.KeyFunctionNotPermitted
	}
	if list := parseMechanisms(k.Attributes["allowed-mechanisms"]); len(list) > 0 {
		for _, a := range list {
			if a == m {
				return nil
			}
		}
		return ck.MechanismInvalid
	}
	return nil
}

func (s *session) wrapKey(ctx context.Context, args rpc.Args) ([]any, error) {
	m := args.Mechanism(1)
	known, p, err := paramsOf(m, ck.MechWrap)
	if err == nil {
		err = s.app.checkIV(m, ck.MechWrap)
	}
	if err != nil {
		return nil, err
	}
	l, err := s.login()
	if err != nil {
		return nil, err
	}
	key, wrapping, err := s.key(ctx, args.Ulong(2), ck.WrappingKeyHandleInvalid)
	if err != nil {
		return nil, err
	}
	payload, k, err := s.key(ctx, args.Ulong(3), ck.KeyHandleInvalid)
	if err != nil {
		return nil, err
	}
	switch {
	case wrapping.Class == hsm.ClassPrivate:
		return nil, ck.WrappingKeyTypeInconsistent
	case k.Class == hsm.ClassPublic:
		return nil, ck.KeyNotWrappable
	case k.Attributes["extractable"] != "true":
		return nil, ck.KeyUnextractable
	case k.Attributes["wrap-with-trusted"] == "true" && wrapping.Attributes["trusted"] != "true":
		return nil, ck.KeyNotWrappable
	}
	if err := allowed(wrapping, m.Type, known, "wrap", ck.WrappingKeyTypeInconsistent); err != nil {
		return nil, err
	}
	out, err := l.Use(ctx, hsm.Use{Kind: hsm.UseWrap, Key: key.ref, Payload: payload.ref, Params: p})
	if err != nil {
		return nil, as(err, map[error]ck.RV{hsm.ErrAttribute: ck.KeyNotWrappable, hsm.ErrTemplate: ck.KeyHandleInvalid, hsm.ErrInvalid: ck.KeySizeRange, hsm.ErrDenied: ck.KeyNotWrappable})
	}
	return reply(out, args.Room(4)), nil
}

// reply answers with bytes, or with their number where there is no room for them.
func reply(out []byte, room rpc.Room) []any {
	if len(out) > 0 && !room.Fits(len(out)) {
		return []any{rpc.Size(len(out))}
	}
	return []any{out}
}

// unwrapped and derived are the classes that a template may ask for.
func (t template) newKey() (r hsm.CreateRequest, err error) {
	if !t.has(ck.Class) || !t.has(ck.KeyType) {
		return r, ck.TemplateIncomplete
	}
	for class, n := range classes {
		if n == t[ck.Class].Num {
			r.Class = class
		}
	}
	if r.Class != hsm.ClassSecret && r.Class != hsm.ClassPrivate {
		return r, ck.TemplateInconsistent
	}
	if r.Type, err = t.keyType(""); err != nil {
		return r, err
	}
	if secretType(r.Type) != (r.Class == hsm.ClassSecret) || t.has(ck.Value) {
		return r, ck.TemplateInconsistent
	}
	r.Token = t.flag(ck.Token)
	r.Attributes, err = t.wanted(r.Class, r.Type)
	return r, err
}

func (s *session) unwrapKey(ctx context.Context, args rpc.Args) ([]any, error) {
	m := args.Mechanism(1)
	known, p, err := paramsOf(m, ck.MechUnwrap)
	if err != nil {
		return nil, err
	}
	t, err := parseTemplate(args.Attributes(4))
	if err != nil {
		return nil, err
	}
	r, err := t.newKey()
	if err != nil {
		return nil, err
	}
	l, err := s.begin(r.Token)
	if err != nil {
		return nil, err
	}
	key, k, err := s.key(ctx, args.Ulong(2), ck.UnwrappingKeyHandleInvalid)
	if err != nil {
		return nil, err
	}
	if k.Class == hsm.ClassPublic {
		return nil, ck.UnwrappingKeyTypeInconsist
	}
	if err := allowed(k, m.Type, known, "unwrap", ck.UnwrappingKeyTypeInconsist); err != nil {
		return nil, err
	}
	if t.has(ck.ValueLen) {
		r.Size = int(min(t[ck.ValueLen].Num, 1<<20))
	}
	t.yield(&r, k, hsm.UnwrapTemplate)
	r.Method, r.Key, r.Params, r.Data = hsm.MethodUnwrap, key.ref, p, hsm.NewSecret(args.Bytes(3))
	return s.one(ctx, l, r, map[error]ck.RV{hsm.ErrCrypto: ck.WrappedKeyInvalid, hsm.ErrInvalid: ck.WrappedKeyInvalid, hsm.ErrAttribute: ck.TemplateInconsistent,
		hsm.ErrDenied: ck.KeyFunctionNotPermitted})
}

// newSecret is newKey for a secret key, generic if the template does not say.
func (t template) newSecret() (r hsm.CreateRequest, err error) {
	if !t.has(ck.Class) {
		t[ck.Class] = rpc.Attribute{Type: ck.Class, Valid: true, Num: ck.ObjectSecretKey}
	}
	if !t.has(ck.KeyType) {
		t[ck.KeyType] = rpc.Attribute{Type: ck.KeyType, Valid: true, Num: ck.KeyGeneric}
	}
	if r, err = t.newKey(); err == nil && r.Class != hsm.ClassSecret {
		err = ck.TemplateInconsistent
	}
	return r, err
}

func (s *session) deriveKey(ctx context.Context, args rpc.Args) ([]any, error) {
	m := args.Mechanism(1)
	known, p, err := paramsOf(m, ck.MechDerive)
	if err != nil {
		return nil, err
	}
	t, err := parseTemplate(args.Attributes(3))
	if err != nil {
		return nil, err
	}
	r, err := t.newSecret()
	if err != nil {
		return nil, err
	}
	l, err := s.begin(r.Token)
	if err != nil {
		return nil, err
	}
	key, k, err := s.key(ctx, args.Ulong(2), ck.KeyHandleInvalid)
	if err != nil {
		return nil, err
	}
	if err := allowed(k, m.Type, known, "derive", ck.KeyTypeInconsistent); err != nil {
		return nil, err
	}
	if r.Size, err = t.length(r.Type); err != nil {
		if known.param != paramECDH || r.Type != "generic-secret" {
			return nil, err
		}
		r.Size = sizes[k.Curve]
	}
	if known.param == paramECDH && p.Hash == "" && r.Size > sizes[k.Curve] {
		return nil, ck.KeySizeRange // no more bytes come out than a coordinate has
	}
	t.yield(&r, k, hsm.DeriveTemplate)
	r.Method, r.Key, r.Params = hsm.MethodDerive, key.ref, p
	return s.one(ctx, l, r, map[error]ck.RV{hsm.ErrInvalid: ck.MechanismParamInvalid, hsm.ErrCrypto: ck.MechanismParamInvalid, hsm.ErrAttribute: ck.TemplateInconsistent,
		hsm.ErrDenied: ck.KeyFunctionNotPermitted})
}
