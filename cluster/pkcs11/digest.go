package pkcs11

import (
	"context"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// digestCall is C_Digest.
func (s *session) digestCall(_ context.Context, args rpc.Args) ([]any, error) {
	op, err := s.op(opDigest)
	if err != nil {
		return nil, err
	}
	if op.parts {
		return nil, ck.OperationActive
	}
	return s.deliver(op, args.Room(2), op.hash.Size(), func() ([]byte, error) {
		op.hash.Write(args.Bytes(1))
		return op.hash.Sum(nil), nil
	})
}

func (s *session) digestFinal(_ context.Context, args rpc.Args) ([]any, error) {
	op, err := s.op(opDigest)
	if err != nil {
		return nil, err
	}
	return s.deliver(op, args.Room(1), op.hash.Size(), func() ([]byte, error) { return op.hash.Sum(nil), nil })
}

// digestKey hashes a key that may be read.
func (s *session) digestKey(ctx context.Context, args rpc.Args) ([]any, error) {
	op, err := s.op(opDigest)
	if err != nil {
		return nil, err
	}
	o, k, err := s.key(ctx, args.Ulong(1), ck.KeyHandleInvalid)
	if err != nil {
		return nil, err
	}
	if k.Class != hsm.ClassSecret || !readable(k) {
		return nil, ck.KeyIndigestible
	}
	l, err := s.login()
	if err != nil {
		return nil, err
	}
	value, err := l.Use(ctx, hsm.Use{Kind: hsm.UseValue, Key: o.ref})
	if err != nil {
		return nil, as(err, map[error]ck.RV{hsm.ErrAttribute: ck.KeyIndigestible, hsm.ErrDenied: ck.KeyIndigestible})
	}
	op.parts = true
	op.hash.Write(value)
	clear(value)
	return nil, nil
}
