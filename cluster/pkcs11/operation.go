package pkcs11

import (
	"context"
	"hash"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// opKind is one of the operations that a session may have under way, one of each.
type opKind uint8

const (
	opEncrypt opKind = iota
	opDecrypt
	opDigest
	opSign
	opVerify
	opSignRecover
	opVerifyRecover
	opKinds
)

// maxBuffered bounds the data of an operation that an HSM takes whole: its messages are
// 4 MiB.
const maxBuffered = 3 << 20

// operation is one under way.
type operation struct {
	kind   opKind
	m      ck.Mech
	key    *object
	login  *login // under which it was begun, and that it uses its key under; nil: it has no key
	info   hsm.KeyInfo
	use    hsm.Use
	locked bool // until a login with CKU_CONTEXT_SPECIFIC
	parts  bool // a part was given

	hash   hash.Hash // nil: the data itself is kept in buf
	hashed string
	buf    []byte
	stream *stream // of a cipher that works in parts
	ready  bool    // out is the result, for which there was no room
	out    []byte
}

// kinds says what each operation needs of a mechanism, a key and its class.
var kinds = [opKinds]struct {
	flag      uint64
	attribute string
	secret    bool // takes secret keys
	class     hsm.Class
}{
	opEncrypt:       {ck.MechEncrypt, "encrypt", true, hsm.ClassPublic},
	opDecrypt:       {ck.MechDecrypt, "decrypt", true, hsm.ClassPrivate},
	opDigest:        {ck.MechDigest, "", false, ""},
	opSign:          {ck.MechSign, "sign", true, hsm.ClassPrivate},
	opVerify:        {ck.MechVerify, "verify", true, hsm.ClassPublic},
	opSignRecover:   {ck.MechSignRecover, "sign", false, hsm.ClassPrivate},
	opVerifyRecover: {ck.MechVerifyRecover, "verify", false, hsm.ClassPublic},
}

// initCall is C_EncryptInit and the like.
func initCall(kind opKind) sessionHandler {
	return func(s *session, ctx context.Context, args rpc.Args) ([]any, error) {
		m := args.Mechanism(1)
		if m.Cancel() {
			s.ops[kind] = nil
			return nil, nil
		}
		s.endOperations()
		// Old clients can neither cancel nor tell an empty buffer from a question for
		// the size, so that what they have finished may still be under way here.
		if s.ops[kind] != nil && s.app.form != rpc.FormOld {
			return nil, ck.OperationActive
		}
		s.ops[kind] = nil
		op, err := s.newOperation(ctx, kind, m, args)
		if err != nil {
			return nil, err
		}
		s.ops[kind] = op
		return nil, nil
	}
}

// endOperations ends those whose login has ended.
func (s *session) endOperations() {
	now, _ := s.login() // nil: nobody is logged in
	for kind, op := range s.ops {
		if op != nil && op.login != nil && op.login != now {
			s.ops[kind] = nil
		}
	}
}

func (s *session) newOperation(ctx context.Context, kind opKind, m rpc.Mechanism, args rpc.Args) (*operation, error) {
	known, p, err := paramsOf(m, kinds[kind].flag)
	if err == nil {
		err = s.app.checkIV(m, kinds[kind].flag)
	}
	if err != nil {
		return nil, err
	}
	op := &operation{kind: kind, m: m.Type, use: hsm.Use{Params: p}}
	if kind == opDigest {
		op.hash = hashes[known.hash].New()
		return op, nil
	}
	op.login, _ = s.login()
	if op.key, op.info, err = s.key(ctx, args.Ulong(2), ck.KeyHandleInvalid); err != nil {
		return nil, err
	}
	if op.login == nil { // it came in between
		return nil, ck.UserNotLoggedIn
	}
	secret := op.info.Class == hsm.ClassSecret
	if secret && !kinds[kind].secret || !secret && op.info.Class != kinds[kind].class {
		return nil, ck.KeyTypeInconsistent
	}
	if err := allowed(op.info, m.Type, known, kinds[kind].attribute, ck.KeyTypeInconsistent); err != nil {
		return nil, err
	}
	op.locked = op.info.Class == hsm.ClassPrivate && op.info.Attributes["always-authenticate"] == "true"
	op.use.Key = op.key.ref
	return op, op.prepare(known)
}

// prepare chooses the HSM's operation and what is done here.
func (op *operation) prepare(known mechanism) error {
	p := &op.use.Params
	secret := op.info.Class == hsm.ClassSecret
	switch op.kind {
	case opEncrypt, opDecrypt:
		op.use.Kind = hsm.UseEncrypt
		if op.kind == opDecrypt {
			op.use.Kind = hsm.UseDecrypt
		}
		return op.prepareStream(known)
	case opSign, opSignRecover:
		op.use.Kind = hsm.UseSign
		if secret {
			op.use.Kind = hsm.UseMAC
		}
	default:
		op.use.Kind = hsm.UseVerify
		if secret {
			op.use.Kind = hsm.UseVerifyMAC
		}
	}
	switch {
	case known.name == "hmac":
		p.Hash = known.hash
	case known.name == "rsa-pkcs" && (known.hash == "" || known.hash == "sha1"):
		p.Mechanism = "rsa-pkcs-data"
		op.setHash(known.hash)
	case known.hash != "":
		op.setHash(known.hash)
		if known.name != "ecdsa-data" {
			p.Hash, p.Digest = known.hash, true
		}
	}
	return nil
}

func (op *operation) setHash(name string) {
	if name != "" {
		op.hash, op.hashed = hashes[name].New(), name
	}
}

// update takes a part of the data.
func (op *operation) update(part []byte) error {
	if op.hash != nil {
		op.hash.Write(part)
		return nil
	}
	if len(op.buf)+len(part) > maxBuffered {
		return ck.DataLenRange
	}
	op.buf = append(op.buf, part...)
	return nil
}

// sha1Info is DER of a DigestInfo of SHA-1 up to the digest (RFC 8017, section 9.2).
var sha1Info = []byte("\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14")

// data is what the HSM is given to sign or verify.
func (op *operation) data() []byte {
	if op.hash == nil {
		return op.buf
	}
	sum := op.hash.Sum(nil)
	if op.use.Params.Mechanism == "rsa-pkcs-data" {
		return append(append([]byte{}, sha1Info...), sum...)
	}
	return sum
}

// signatureSize is the length of what Sign makes.
func (op *operation) signatureSize() int {
	switch op.info.Type {
	case "rsa":
		return op.info.Size / 8
	case "ec":
		return 2 * sizes[op.info.Curve]
	case "ed25519":
		return 64
	case "ml-dsa":
		return parameterSets["ml-dsa"][op.info.Size].signature
	case "aes":
		return 16
	}
	if n := op.use.Params.TagLength; n > 0 {
		return n
	}
	return hashes[op.use.Params.Hash].Size()
}

// op returns the operation under way. CKR_USER_NOT_LOGGED_IN as long as the key
// wants a PIN for each use. An operation ends with the login that it was begun under,
// whichever session logs out: whoever logs in next has not begun it.
func (s *session) op(kind opKind) (*operation, error) {
	s.endOperations()
	op := s.ops[kind]
	switch {
	case op == nil:
		return nil, ck.OperationNotInitialized
	case op.locked:
		return nil, ck.UserNotLoggedIn
	}
	return op, nil
}

// updateCall takes a part of what is signed, verified or digested.
func updateCall(kind opKind) sessionHandler {
	return func(s *session, _ context.Context, args rpc.Args) ([]any, error) {
		op, err := s.op(kind)
		if err != nil {
			return nil, err
		}
		op.parts = true
		if err := op.update(args.Bytes(1)); err != nil {
			s.ops[kind] = nil
			return nil, err
		}
		return nil, nil
	}
}

// deliver answers with a result that is made once: for a question for its size with
// size, and for too little room with its length, without ending the operation.
func (s *session) deliver(op *operation, room rpc.Room, size int, work func() ([]byte, error)) ([]any, error) {
	if !op.ready && (room.Query || size >= 0 && !room.Fits(size)) && size != 0 {
		return []any{rpc.Size(max(size, -size))}, nil
	}
	if !op.ready {
		out, err := work()
		if err != nil {
			s.ops[op.kind] = nil
			return nil, err
		}
		op.ready, op.out = true, out
	}
	if len(op.out) > 0 && !room.Fits(len(op.out)) {
		return []any{rpc.Size(len(op.out))}, nil
	}
	// A client of 0.24 that has a buffer of size 0 and nothing to get looks as if it
	// asked for the size: then the operation stays, and its next C_…Init replaces it.
	if !(room.Query && s.app.form == rpc.FormOld) {
		s.ops[op.kind] = nil
	}
	out := op.out
	if out == nil {
		out = []byte{}
	}
	return []any{out}, nil
}

// sign is C_Sign, C_SignFinal, C_SignRecover.
func (s *session) sign(ctx context.Context, kind opKind, data []byte, final bool, room rpc.Room) ([]any, error) {
	op, err := s.op(kind)
	if err != nil {
		return nil, err
	}
	if !final && op.parts {
		return nil, ck.OperationActive
	}
	return s.deliver(op, room, op.signatureSize(), func() ([]byte, error) {
		if err := op.update(data); err != nil {
			return nil, err
		}
		use := op.use
		use.Data = op.data()
		out, err := op.login.Use(ctx, use)
		return out, as(err, map[error]ck.RV{hsm.ErrInvalid: ck.DataLenRange, hsm.ErrNotFound: ck.KeyHandleInvalid, hsm.ErrDestroyed: ck.KeyHandleInvalid})
	})
}

func (s *session) signCall(ctx context.Context, args rpc.Args) ([]any, error) {
	return s.sign(ctx, opSign, args.Bytes(1), false, args.Room(2))
}

func (s *session) signFinal(ctx context.Context, args rpc.Args) ([]any, error) {
	return s.sign(ctx, opSign, nil, true, args.Room(1))
}

func (s *session) signRecover(ctx context.Context, args rpc.Args) ([]any, error) {
	return s.sign(ctx, opSignRecover, args.Bytes(1), false, args.Room(2))
}

// verify is C_Verify and C_VerifyFinal.
func (s *session) verify(ctx context.Context, data, signature []byte, final bool) error {
	op, err := s.op(opVerify)
	if err != nil {
		return err
	}
	if !final && op.parts {
		return ck.OperationActive
	}
	s.ops[opVerify] = nil
	if len(signature) != op.signatureSize() {
		return ck.SignatureLenRange
	}
	if err := op.update(data); err != nil {
		return err
	}
	use := op.use
	use.Data, use.Signature = op.data(), signature
	_, err = op.login.Use(ctx, use)
	return as(err, map[error]ck.RV{hsm.ErrInvalid: ck.DataLenRange, hsm.ErrNotFound: ck.KeyHandleInvalid, hsm.ErrDestroyed: ck.KeyHandleInvalid})
}

func (s *session) verifyCall(ctx context.Context, args rpc.Args) ([]any, error) {
	return nil, s.verify(ctx, args.Bytes(1), args.Bytes(2), false)
}

func (s *session) verifyFinal(ctx context.Context, args rpc.Args) ([]any, error) {
	return nil, s.verify(ctx, nil, args.Bytes(1), true)
}

// verifyRecover undoes a signature with the public key, which is no secret: here.
func (s *session) verifyRecover(_ context.Context, args rpc.Args) ([]any, error) {
	op, err := s.op(opVerifyRecover)
	if err != nil {
		return nil, err
	}
	signature := args.Bytes(1)
	return s.deliver(op, args.Room(2), -op.info.Size/8, func() ([]byte, error) {
		if len(signature) != op.info.Size/8 {
			return nil, ck.SignatureLenRange
		}
		return recoverData(op.info, op.m, signature)
	})
}
