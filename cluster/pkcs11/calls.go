package pkcs11

import (
	"context"
	"crypto/rand"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// sessionHandlers are the calls whose first argument is a session.
var sessionHandlers = map[rpc.Call]sessionHandler{
	rpc.GetSessionInfo: (*session).getInfo, rpc.Login: (*session).loginCall, rpc.LoginUser: (*session).loginUser, rpc.Logout: (*session).logout,
	rpc.SetPIN: (*session).setPIN, rpc.SessionCancel: (*session).cancel,
	rpc.InitPIN:           refuse(ck.UserNotLoggedIn), // the security officer never is
	rpc.GetOperationState: refuse(ck.StateUnsaveable), rpc.SetOperationState: refuse(ck.SavedStateInvalid),
	rpc.CreateObject: (*session).createObject, rpc.CopyObject: (*session).copyObject, rpc.DestroyObject: (*session).destroyObject,
	rpc.GetObjectSize: (*session).getObjectSize, rpc.GetAttributeValue: (*session).getAttributeValue, rpc.SetAttributeValue: (*session).setAttributeValue,
	rpc.FindObjectsInit: (*session).findInit, rpc.FindObjects: (*session).findObjects, rpc.FindObjectsFinal: (*session).findFinal,
	rpc.GenerateKey: (*session).generateKey, rpc.GenerateKeyPair: (*session).generateKeyPair,
	rpc.WrapKey: (*session).wrapKey, rpc.UnwrapKey: (*session).unwrapKey, rpc.DeriveKey: (*session).deriveKey,
	rpc.EncapsulateKey: (*session).encapsulateKey, rpc.DecapsulateKey: (*session).decapsulateKey,
	rpc.SeedRandom: refuse(ck.RandomSeedNotSupported), rpc.GenerateRandom: (*session).generateRandom,

	rpc.EncryptInit: initCall(opEncrypt), rpc.Encrypt: cryptCall(opEncrypt), rpc.EncryptUpdate: cryptUpdateCall(opEncrypt), rpc.EncryptFinal: cryptFinalCall(opEncrypt),
	rpc.DecryptInit: initCall(opDecrypt), rpc.Decrypt: cryptCall(opDecrypt), rpc.DecryptUpdate: cryptUpdateCall(opDecrypt), rpc.DecryptFinal: cryptFinalCall(opDecrypt),
	rpc.DigestInit: initCall(opDigest), rpc.Digest: (*session).digestCall, rpc.DigestUpdate: updateCall(opDigest), rpc.DigestKey: (*session).digestKey, rpc.DigestFinal: (*session).digestFinal,
	rpc.SignInit: initCall(opSign), rpc.Sign: (*session).signCall, rpc.SignUpdate: updateCall(opSign), rpc.SignFinal: (*session).signFinal,
	rpc.SignRecoverInit: initCall(opSignRecover), rpc.SignRecover: (*session).signRecover,
	rpc.VerifyInit: initCall(opVerify), rpc.Verify: (*session).verifyCall, rpc.VerifyUpdate: updateCall(opVerify), rpc.VerifyFinal: (*session).verifyFinal,
	rpc.VerifyRecoverInit: initCall(opVerifyRecover), rpc.VerifyRecover: (*session).verifyRecover,
	rpc.DigestEncryptUpdate: (*session).digestEncryptUpdate, rpc.DecryptDigestUpdate: (*session).decryptDigestUpdate,
	rpc.SignEncryptUpdate: (*session).signEncryptUpdate, rpc.DecryptVerifyUpdate: (*session).decryptVerifyUpdate,
}

func refuse(rv ck.RV) sessionHandler {
	return func(*session, context.Context, rpc.Args) ([]any, error) { return nil, rv }
}

// maxRandom bounds one call of C_GenerateRandom.
const maxRandom = 16 << 20

// generateRandom takes random bytes from an HSM, or before login, when no HSM is to be
// asked, from the generator of this process.
func (s *session) generateRandom(ctx context.Context, args rpc.Args) ([]any, error) {
	n := int(args.Room(1).N)
	if n > maxRandom {
		return nil, ck.ArgumentsBad
	}
	out := make([]byte, 0, n)
	l, err := s.login()
	if err != nil {
		out = out[:n]
		rand.Read(out)
		return []any{out}, nil
	}
	for len(out) < n {
		piece, err := l.Use(ctx, hsm.Use{Kind: hsm.UseRandom, Length: min(chunk, n-len(out))})
		if err != nil {
			return nil, err
		}
		out = append(out, piece...)
	}
	return []any{out}, nil
}

// The flags of C_SessionCancel are those of mechanisms, and one for searches.
const cancelFind = 1 << 6

func (s *session) cancel(_ context.Context, args rpc.Args) ([]any, error) {
	what := args.Ulong(1)
	for kind, k := range kinds {
		if what&k.flag != 0 {
			s.ops[kind] = nil
		}
	}
	if what&cancelFind != 0 {
		s.find = nil
	}
	return nil, nil
}

// The four calls that do two things at once. The part that takes data goes on only
// when there was room for what the other made.

func (s *session) digestEncryptUpdate(ctx context.Context, args rpc.Args) ([]any, error) {
	return s.before(ctx, opDigest, args)
}

func (s *session) signEncryptUpdate(ctx context.Context, args rpc.Args) ([]any, error) {
	return s.before(ctx, opSign, args)
}

// before takes the data for another operation and encrypts it.
func (s *session) before(ctx context.Context, kind opKind, args rpc.Args) ([]any, error) {
	other, err := s.op(kind)
	if err != nil {
		return nil, err
	}
	out, err := s.cryptUpdate(ctx, opEncrypt, args.Bytes(1), args.Room(2))
	if err != nil {
		return nil, err
	}
	if _, short := out[0].(rpc.Size); short {
		return out, nil
	}
	other.parts = true
	return out, other.update(args.Bytes(1))
}

func (s *session) decryptDigestUpdate(ctx context.Context, args rpc.Args) ([]any, error) {
	return s.after(ctx, opDigest, args)
}

func (s *session) decryptVerifyUpdate(ctx context.Context, args rpc.Args) ([]any, error) {
	return s.after(ctx, opVerify, args)
}

// after decrypts and takes what comes out for another operation.
func (s *session) after(ctx context.Context, kind opKind, args rpc.Args) ([]any, error) {
	other, err := s.op(kind)
	if err != nil {
		return nil, err
	}
	out, err := s.cryptUpdate(ctx, opDecrypt, args.Bytes(1), args.Room(2))
	if err != nil {
		return nil, err
	}
	plain, ok := out[0].([]byte)
	if !ok {
		return out, nil
	}
	other.parts = true
	return out, other.update(plain)
}
