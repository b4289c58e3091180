package soft

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// maxRandom bounds one request for random bytes.
const maxRandom = 1 << 20

// Use implements hsm.Session. Keys are used by crypto users, and by nobody
// else.
func (s *session) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	done, err := s.enter(ctx, hsm.RoleCryptoUser)
	if err != nil {
		return nil, err
	}
	defer done()
	s.uses.RLock()
	defer s.uses.RUnlock()
	switch u.Kind {
	case hsm.UseRandom:
		return random(u.Length)
	case hsm.UsePublic:
		return s.public(u.Key)
	case hsm.UseWrap:
		return s.wrap(ctx, u)
	case hsm.UseValue:
		return s.value(ctx, u)
	}
	op, ok := operations[u.Kind]
	if !ok {
		return nil, fmt.Errorf("%w: there is no use %q", hsm.ErrInvalid, u.Kind)
	}
	e, err := s.usable(u.Key, accessUse, op.attribute)
	if err != nil {
		return nil, err
	}
	m, err := e.parsed()
	if err != nil {
		return nil, err
	}
	var out []byte
	err = s.withApproval(ctx, u.Approvals, s.keyQuorum(e.rec, hsm.ServiceKeyUsage), func() (err error) {
		if out, err = op.run(m, u); err != nil {
			err = fmt.Errorf("%s with key %s: %w", u.Kind, u.Key, mechanism(err))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// operation is one way to use a key: the attribute that allows it, and the work.
type operation struct {
	attribute string
	run       func(m material, u hsm.Use) ([]byte, error)
}

var operations = map[hsm.UseKind]operation{
	hsm.UseSign:      {"sign", sign},
	hsm.UseVerify:    {"verify", verify},
	hsm.UseMAC:       {"sign", mac},
	hsm.UseVerifyMAC: {"verify", verifyMAC},
	hsm.UseEncrypt:   {"encrypt", encrypt},
	hsm.UseDecrypt:   {"decrypt", decrypt},
}

func wrongClass(what, want string) error {
	return fmt.Errorf("%w: %s takes %s", mech.ErrMechanism, what, want)
}

func sign(m material, u hsm.Use) ([]byte, error) {
	if m.private == nil {
		return nil, wrongClass("sign", "a private key; secret keys make a mac")
	}
	return m.private.Sign(nil, signParams(u.Params), u.Data)
}

func verify(m material, u hsm.Use) ([]byte, error) {
	if m.public == nil {
		return nil, wrongClass("verify", "a public key; secret keys verify a mac")
	}
	return nil, m.public.Verify(signParams(u.Params), u.Data, u.Signature)
}

func mac(m material, u hsm.Use) ([]byte, error) {
	if m.secret == nil {
		return nil, wrongClass("mac", "a secret key")
	}
	return m.secret.MAC(signParams(u.Params), u.Data)
}

func verifyMAC(m material, u hsm.Use) ([]byte, error) {
	if m.secret == nil {
		return nil, wrongClass("verify-mac", "a secret key")
	}
	return nil, m.secret.VerifyMAC(signParams(u.Params), u.Data, u.Signature)
}

func encrypt(m material, u hsm.Use) ([]byte, error) {
	switch {
	case m.secret != nil:
		return m.secret.Encrypt(nil, cryptParams(u.Params), u.Data)
	case m.public != nil:
		return m.public.Encrypt(nil, cryptParams(u.Params), u.Data)
	}
	return nil, wrongClass("encrypt", "a secret or a public key")
}

func decrypt(m material, u hsm.Use) ([]byte, error) {
	switch {
	case m.secret != nil:
		return m.secret.Decrypt(nil, cryptParams(u.Params), u.Data)
	case m.private != nil:
		return m.private.Decrypt(nil, cryptParams(u.Params), u.Data)
	}
	return nil, wrongClass("decrypt", "a secret or a private key")
}

// random is the system's generator, which is that of the FIPS module when it
// runs in that mode.
func random(n int) ([]byte, error) {
	if n < 1 || n > maxRandom {
		return nil, fmt.Errorf("%w: %d random bytes: want 1 to %d", hsm.ErrInvalid, n, maxRandom)
	}
	b := make([]byte, n)
	rand.Read(b)
	return b, nil
}

// public returns a public key, or the public half of a private key.
func (s *session) public(ref hsm.KeyRef) ([]byte, error) {
	e, _, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	if len(e.rec.Core.Public) == 0 {
		return nil, fmt.Errorf("%w: key %s is a secret key and has no public half", hsm.ErrInvalid, ref)
	}
	return append([]byte{}, e.rec.Core.Public...), nil
}

// value returns what a data object or certificate holds, or a key in clear: to its
// owner, and only if it may leave the HSM unwrapped (PKCS #11 v2.40 §4.9).
func (s *session) value(ctx context.Context, u hsm.Use) (out []byte, err error) {
	ref := u.Key
	e, a, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	r := e.rec
	switch {
	case !r.Core.Class.IsKey():
		if a < accessUse {
			return nil, fmt.Errorf("%w: %s belongs to %q", hsm.ErrDenied, ref, r.Core.Owner)
		}
		return bytes.Clone(r.Material.Reveal()), nil
	case r.Core.Class == hsm.ClassPublic:
		return s.public(ref)
	}
	defer func() { s.audit(ctx, "value", ref, "", err) }()
	switch {
	case a != accessOwner:
		return nil, fmt.Errorf("%w: key %s belongs to %q; only its owner reads it", hsm.ErrDenied, ref, r.Core.Owner)
	case r.Flag("sensitive") || !r.Flag("extractable") || r.Flag("wrap-with-trusted"):
		return nil, fmt.Errorf("%w: key %s does not leave the HSM in clear", hsm.ErrAttribute, ref)
	}
	err = s.withApproval(ctx, u.Approvals, s.keyQuorum(r, hsm.ServiceKeyManagement), func() error {
		out = bytes.Clone(r.Material.Reveal())
		return nil
	})
	return out, err
}

// wrap wraps a key that the user owns and that may leave the HSM. Of the
// wrapping key it takes the owner too, unless it is public.
func (s *session) wrap(ctx context.Context, u hsm.Use) ([]byte, error) {
	payload, a, err := s.lookup(u.Payload)
	if err != nil {
		return nil, err
	}
	if a != accessOwner {
		return nil, fmt.Errorf("%w: key %s belongs to %q; only its owner exports it", hsm.ErrDenied, u.Payload, payload.rec.Core.Owner)
	}
	key, a, err := s.lookup(u.Key)
	if err != nil {
		return nil, err
	}
	if a != accessOwner && key.rec.Core.Class != hsm.ClassPublic {
		return nil, fmt.Errorf("%w: key %s belongs to %q; only its owner wraps with it", hsm.ErrDenied, u.Key, key.rec.Core.Owner)
	}
	if err := cmp.Or(mayWrap(key.rec, payload.rec), mayWrapTrusted(key.rec, payload.rec, u.Params), fitsWrapTemplate(key.rec, payload.rec, s.sessionKey(u.Payload) == nil)); err != nil {
		return nil, err
	}
	m, err := key.parsed()
	if err != nil {
		return nil, err
	}
	var out []byte
	run := func() (err error) {
		if out, err = wrapWith(m, u, payload.rec.Material.Reveal()); err != nil {
			err = fmt.Errorf("wrap key %s with key %s: %w", u.Payload, u.Key, mechanism(err))
		}
		return err
	}
	err = s.withApproval(ctx, u.Approvals, s.keyQuorum(payload.rec, hsm.ServiceKeyManagement), func() error {
		return s.withApproval(ctx, u.Approvals, s.keyQuorum(key.rec, hsm.ServiceKeyManagement), run)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// mayWrap checks the attributes of both keys.
func mayWrap(key, payload *hsm.Record) error {
	switch {
	case payload.Core.Class == hsm.ClassPublic || !payload.Core.Class.IsKey():
		return fmt.Errorf("%w: %s is a %s; export it as it is", hsm.ErrInvalid, payload.Ref, payload.Core.Class)
	case !payload.Flag("extractable"):
		return fmt.Errorf("%w: key %s is not extractable, and never will be", hsm.ErrAttribute, payload.Ref)
	case !key.Flag("wrap"):
		return fmt.Errorf("%w: key %s: wrap is false; its owner sets it with key set-attribute", hsm.ErrAttribute, key.Ref)
	case payload.Flag("wrap-with-trusted") && !key.Flag("trusted"):
		return fmt.Errorf("%w: key %s may be wrapped with a trusted key only; an admin sets trusted on key %s", hsm.ErrAttribute, payload.Ref, key.Ref)
	}
	return nil
}

func wrapWith(m material, u hsm.Use, payload []byte) ([]byte, error) {
	switch {
	case m.secret != nil:
		return m.secret.Wrap(nil, cryptParams(u.Params), payload)
	case m.public != nil:
		return m.public.Wrap(nil, cryptParams(u.Params), payload)
	}
	return nil, wrongClass("wrap", "a secret or a public key")
}
