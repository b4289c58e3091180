package pkcs11

import (
	"context"
	"math/big"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// chunk is what one call to an HSM works on.
const chunk = 1 << 20

// blockOf is the length of a block of the HSM's mechanism.
func blockOf(mechanism string) int {
	if strings.HasPrefix(mechanism, "des3-") {
		return 8
	}
	return 16
}

// stream is a cipher that works in parts. What one part leaves for the next is kept
// here, so that each part may go to another HSM.
type stream struct {
	block   int // bytes of one
	encrypt bool
	pad     bool   // PKCS #7
	counter bool   // aes-ctr
	iv      []byte // of the next block; nil for ECB
	rest    []byte // not worked on yet
	used    int    // bytes of the counter's block that are used up
	left    *big.Int
}

// prepareStream makes a stream for the modes that work in parts. The others take
// their data whole.
func (op *operation) prepareStream(known mechanism) error {
	p := &op.use.Params
	switch p.Mechanism {
	case "aes-cbc", "aes-ecb", "aes-ctr", "des3-cbc", "des3-ecb":
		op.stream = &stream{block: blockOf(p.Mechanism), encrypt: op.kind == opEncrypt, pad: op.m == ck.AESCBCPad || op.m == ck.DES3CBCPad,
			counter: p.Mechanism == "aes-ctr", iv: p.IV}
		if op.stream.counter {
			op.stream.left = counterLeft(p.IV, p.CounterBits)
			p.CounterBits = 0 // counted here, over all parts
		}
		p.IV = nil
	}
	return nil
}

// counterLeft is how many bytes a counter block makes before its bits repeat; nil: as
// many as one likes.
func counterLeft(iv []byte, bits int) *big.Int {
	if bits == 8*len(iv) {
		return nil
	}
	end := new(big.Int).Lsh(big.NewInt(1), uint(bits))
	start := new(big.Int).SetBytes(iv)
	left := end.Sub(end, start.Mod(start, end))
	return left.Lsh(left, 4)
}

// takes is how much of n more bytes a part works on now.
func (st *stream) takes(n int) int {
	total := len(st.rest) + n
	switch {
	case st.counter:
		return total
	case st.pad && !st.encrypt: // the last block holds the padding
		return max(0, total-1) / st.block * st.block
	}
	return total / st.block * st.block
}

// run works on whole blocks, or on any bytes of a counter mode.
func (op *operation) run(ctx context.Context, data []byte) ([]byte, error) {
	st := op.stream
	if st.left != nil {
		if st.left.Cmp(big.NewInt(int64(len(data)))) < 0 {
			return nil, ck.DataLenRange
		}
		st.left.Sub(st.left, big.NewInt(int64(len(data))))
	}
	out := make([]byte, 0, len(data))
	for len(data) > 0 {
		n := min(len(data), chunk)
		use := op.use
		use.Params.IV = st.iv
		use.Data = append(make([]byte, st.used, st.used+n), data[:n]...)
		piece, err := op.login.Use(ctx, use)
		if err != nil {
			return nil, as(err, map[error]ck.RV{hsm.ErrNotFound: ck.KeyHandleInvalid, hsm.ErrDestroyed: ck.KeyHandleInvalid})
		}
		if len(piece) != len(use.Data) {
			return nil, ck.GeneralError
		}
		out = append(out, piece[st.used:]...)
		st.advance(use.Data, piece)
		data = data[n:]
	}
	return out, nil
}

// advance makes the IV that follows.
func (st *stream) advance(in, out []byte) {
	switch {
	case st.counter:
		n := new(big.Int).SetBytes(st.iv)
		n.Add(n, big.NewInt(int64(len(in)/st.block)))
		n.And(n, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(8*st.block)), big.NewInt(1)))
		st.iv, st.used = n.FillBytes(make([]byte, st.block)), len(in)%st.block
	case st.iv == nil:
	case st.encrypt:
		st.iv = append([]byte{}, out[len(out)-st.block:]...)
	default:
		st.iv = append([]byte{}, in[len(in)-st.block:]...)
	}
}

// end works on what is left.
func (op *operation) end(ctx context.Context) ([]byte, error) {
	st, wrong := op.stream, ck.DataLenRange
	if !st.encrypt {
		wrong = ck.EncryptedDataLenRange
	}
	switch {
	case st.pad && st.encrypt:
		n := st.block - len(st.rest)%st.block
		for range n {
			st.rest = append(st.rest, byte(n))
		}
		return op.run(ctx, st.rest)
	case st.pad:
		if len(st.rest) != st.block {
			return nil, wrong
		}
		out, err := op.run(ctx, st.rest)
		if err != nil {
			return nil, err
		}
		return unpad(out)
	case len(st.rest) > 0:
		return nil, wrong
	}
	return nil, nil
}

// unpad takes PKCS #7 padding off. Whether it is right is told, as PKCS #11 has it.
func unpad(last []byte) ([]byte, error) {
	block := len(last)
	n := int(last[block-1])
	if n < 1 || n > block {
		return nil, ck.EncryptedDataInvalid
	}
	bad := byte(0)
	for _, b := range last[block-n:] {
		bad |= b ^ byte(n)
	}
	if bad != 0 {
		return nil, ck.EncryptedDataInvalid
	}
	return last[:block-n], nil
}

// cryptSize is the length of what the operation makes of n bytes in one go; negative if
// it is at most that.
func (op *operation) cryptSize(n int) int {
	p := op.use.Params
	switch {
	case op.info.Type == "rsa" && op.kind == opEncrypt:
		return op.info.Size / 8
	case op.info.Type == "rsa" && p.Mechanism == "rsa-x-509":
		return op.info.Size / 8
	case op.info.Type == "rsa":
		return -op.info.Size / 8
	case op.stream != nil && op.stream.pad && op.stream.encrypt:
		return n/op.stream.block*op.stream.block + op.stream.block
	case op.stream != nil && op.stream.pad:
		return -n
	case op.stream != nil:
		return n
	}
	extra := 16
	if p.TagLength > 0 {
		extra = p.TagLength
	}
	if len(p.IV) == 0 {
		extra += 12
	}
	if op.kind == opEncrypt {
		return n + extra
	}
	return max(0, n-extra)
}

// crypt is C_Encrypt and C_Decrypt.
func (s *session) crypt(ctx context.Context, kind opKind, data []byte, room rpc.Room) ([]any, error) {
	op, err := s.op(kind)
	if err != nil {
		return nil, err
	}
	if op.parts {
		return nil, ck.OperationActive
	}
	return s.deliver(op, room, op.cryptSize(len(data)), func() ([]byte, error) {
		if op.stream == nil {
			return op.whole(ctx, data)
		}
		n := op.stream.takes(len(data))
		out, err := op.run(ctx, data[:n])
		if err != nil {
			return nil, err
		}
		op.stream.rest = append([]byte{}, data[n:]...)
		last, err := op.end(ctx)
		return append(out, last...), err
	})
}

// whole works on data that an HSM takes in one piece.
func (op *operation) whole(ctx context.Context, data []byte) ([]byte, error) {
	wrong := ck.DataLenRange
	if op.kind == opDecrypt {
		wrong = ck.EncryptedDataLenRange
		if op.info.Type == "rsa" && len(data) != op.info.Size/8 {
			return nil, wrong
		}
	}
	if len(data) > maxBuffered {
		return nil, wrong
	}
	use := op.use
	use.Data = data
	out, err := op.login.Use(ctx, use)
	return out, as(err, map[error]ck.RV{hsm.ErrInvalid: wrong, hsm.ErrCrypto: ck.EncryptedDataInvalid, hsm.ErrNotFound: ck.KeyHandleInvalid, hsm.ErrDestroyed: ck.KeyHandleInvalid})
}

// cryptUpdate is C_EncryptUpdate and C_DecryptUpdate. Without room nothing is taken.
func (s *session) cryptUpdate(ctx context.Context, kind opKind, data []byte, room rpc.Room) ([]any, error) {
	op, err := s.op(kind)
	if err != nil {
		return nil, err
	}
	if op.stream == nil {
		op.parts = true
		if err := op.update(data); err != nil {
			s.ops[kind] = nil
			return nil, err
		}
		return []any{[]byte{}}, nil
	}
	n := op.stream.takes(len(data))
	if n > 0 && !room.Fits(n) {
		return []any{rpc.Size(n)}, nil
	}
	op.parts = true
	all := append(op.stream.rest, data...)
	out, err := op.run(ctx, all[:n])
	if err != nil {
		s.ops[kind] = nil
		return nil, err
	}
	op.stream.rest = append([]byte{}, all[n:]...)
	return []any{out}, nil
}

// cryptFinal is C_EncryptFinal and C_DecryptFinal.
func (s *session) cryptFinal(ctx context.Context, kind opKind, room rpc.Room) ([]any, error) {
	op, err := s.op(kind)
	if err != nil {
		return nil, err
	}
	if op.stream == nil {
		return s.deliver(op, room, op.cryptSize(len(op.buf)), func() ([]byte, error) { return op.whole(ctx, op.buf) })
	}
	size := 0
	switch {
	case op.stream.pad && op.stream.encrypt:
		size = op.stream.block
	case op.stream.pad:
		size = -op.stream.block
	}
	return s.deliver(op, room, size, func() ([]byte, error) { return op.end(ctx) })
}

func cryptCall(kind opKind) sessionHandler {
	return func(s *session, ctx context.Context, args rpc.Args) ([]any, error) {
		return s.crypt(ctx, kind, args.Bytes(1), args.Room(2))
	}
}

func cryptUpdateCall(kind opKind) sessionHandler {
	return func(s *session, ctx context.Context, args rpc.Args) ([]any, error) {
		return s.cryptUpdate(ctx, kind, args.Bytes(1), args.Room(2))
	}
}

func cryptFinalCall(kind opKind) sessionHandler {
	return func(s *session, ctx context.Context, args rpc.Args) ([]any, error) {
		return s.cryptFinal(ctx, kind, args.Room(1))
	}
}
