package pkcs11

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// changes turns a template into the attributes to change; nothing is added to it.
func (t template) changes(k hsm.KeyInfo) (map[string]string, error) {
	set, out := attributeSet(k.Class, k.Type), map[string]string{}
	for at, a := range t {
		switch {
		case at == ck.Token:
			continue
		case !set[at]:
			return nil, ck.AttributeTypeInvalid
		case fixedAttribute(at) || slices.Contains(readOnly, at):
			return nil, ck.AttributeReadOnly
		}
		if err := addText(out, at, a); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// changeErrors is what errors of the HSM mean for attributes that change, in place or in a
// copy.
var changeErrors = map[error]ck.RV{hsm.ErrAttribute: ck.AttributeReadOnly, hsm.ErrInvalid: ck.AttributeValueInvalid, hsm.ErrDenied: ck.ActionProhibited}

// objectAndTemplate reads the object of a call, and how it, or a copy of it, is to change.
func (s *session) objectAndTemplate(ctx context.Context, args rpc.Args) (*object, hsm.KeyInfo, template, error) {
	o, k, err := s.object(ctx, args.Ulong(1), fresh)
	if err != nil {
		return nil, k, nil, err
	}
	t, err := parseTemplate(args.Attributes(2))
	return o, k, t, err
}

func (s *session) setAttributeValue(ctx context.Context, args rpc.Args) ([]any, error) {
	o, k, t, err := s.objectAndTemplate(ctx, args)
	if err != nil {
		return nil, err
	}
	l, err := s.begin(k.Token || t.flag(ck.Token))
	if err != nil {
		return nil, err
	}
	changes, err := t.changes(k)
	if err == nil {
		err = mayChange(k, changes, inPlace)
	}
	if err == nil && t.has(ck.Token) && k.Token && !t.flag(ck.Token) {
		err = ck.AttributeReadOnly
	}
	if err != nil {
		return nil, err
	}
	defer o.stale()
	for _, name := range inTurn(changes) {
		value := changes[name]
		if k.Attributes[name] == value {
			continue
		}
		_, err := l.Change(ctx, hsm.Change{Kind: hsm.ChangeAttribute, Ref: o.ref, Name: name, Value: value})
		if err != nil {
			return nil, as(err, changeErrors)
		}
	}
	return nil, s.setToken(ctx, l, o, k, t)
}

// inTurn is the order in which attributes change: modifiable last, for after it nothing
// does.
func inTurn(changes map[string]string) []string {
	return slices.SortedFunc(maps.Keys(changes), func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == "modifiable":
			return 1
		case b == "modifiable":
			return -1
		}
		return cmp.Compare(a, b)
	})
}

// How attributes change: in an object, or in a copy of it, which may be had of an object
// that is not modifiable.
const (
	inPlace = false
	copied  = true
)

// mayChange refuses what an HSM would for the attribute's own rules, before anything is
// changed: of several attributes some would be otherwise and some not. What the HSM refuses
// besides, of a trusted key say, can come after some have changed.
func mayChange(k hsm.KeyInfo, changes map[string]string, copied bool) error {
	for name, value := range changes {
		was := k.Attributes[name]
		if was == value {
			continue
		}
		if k.Attributes["modifiable"] == "false" && !copied {
			return ck.ActionProhibited
		}
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return err
		}
		if a.Modifiable == hsm.Never || !a.MayTurn(was == "true", value == "true") {
			return ck.AttributeReadOnly
		}
	}
	return nil
}

// setToken makes a token object of a session object, which an HSM does once. For the
// application it is one before the HSMs begin: a session or login that ends meanwhile must
// not destroy a key that they promise to keep.
func (s *session) setToken(ctx context.Context, l *login, o *object, k hsm.KeyInfo, t template) error {
	if k.Token || !t.flag(ck.Token) {
		return nil
	}
	token := s.app.objects.promote(o)
	if token == nil {
		return ck.ObjectHandleInvalid
	}
	_, err := l.Create(ctx, hsm.CreateRequest{Method: hsm.MethodPromote, Token: true, Key: o.ref}, cluster.Policy{})
	if err != nil {
		s.app.demote(token, o)
	}
	return err
}
