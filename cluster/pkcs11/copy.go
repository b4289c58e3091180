package pkcs11

import (
	"context"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

func (s *session) copyObject(ctx context.Context, args rpc.Args) ([]any, error) {
	o, k, t, err := s.objectAndTemplate(ctx, args)
	if err != nil {
		return nil, err
	}
	replaced := k.Class == hsm.ClassData && t.has(ck.Value)
	for at := range t {
		if fixedAttribute(at) && !(at == ck.Value && replaced) {
			return nil, ck.AttributeReadOnly
		}
	}
	token := k.Token
	if t.has(ck.Token) {
		token = t.flag(ck.Token)
	}
	l, err := s.begin(token)
	if err != nil {
		return nil, err
	}
	if !copyable(k) {
		return nil, ck.ActionProhibited
	}
	r := hsm.CreateRequest{Method: hsm.MethodCopy, Token: token, Key: o.ref}
	value := t.bytes(ck.Value)
	delete(t, ck.Value)
	if r.Attributes, err = t.changes(k); err != nil {
		return nil, err
	}
	if replaced {
		if err := dataWith(&r, k, value); err != nil {
			return nil, err
		}
		defer r.Data.Wipe()
	}
	return s.one(ctx, l, r, changeErrors)
}

// dataWith makes of the copy of a data object a new object with another value. It has what
// the first one has, where the copy is not to have something else.
func dataWith(r *hsm.CreateRequest, k hsm.KeyInfo, value []byte) error {
	if err := mayChange(k, r.Attributes, copied); err != nil {
		return err
	}
	for name, v := range k.Attributes {
		a, err := hsm.LookupAttribute(name)
		if _, changed := r.Attributes[name]; err == nil && a.AtCreation && a.Stored && !changed {
			r.Attributes[name] = v
		}
	}
	r.Method, r.Class, r.Key = hsm.MethodImport, hsm.ClassData, 0
	r.Data = hsm.NewSecret(append([]byte{}, value...))
	return nil
}

// fixedAttribute tells whether an attribute is the object's material, which no copy changes.
func fixedAttribute(at ck.Attr) bool { return at != ck.Token && slices.Contains(material, at) }
