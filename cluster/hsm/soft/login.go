package soft

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"runtime"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ticketLife is how long a login at one HSM vouches for logins at the others.
const ticketLife = 5 * time.Minute

// module is the HSM as one caller sees it before it logs in.
type module struct {
	h   *HSM
	who hsm.Principal
}

// hashing bounds the password hashes computed at once, so that logins leave
// room for the uses of keys.
var hashing = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)))

// Login implements hsm.Module. An unknown user costs the same time as a wrong
// password.
func (m *module) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	return m.LoginMFA(ctx, role, name, password, nil)
}

// LoginMFA implements hsm.MFA.
func (m *module) LoginMFA(ctx context.Context, role hsm.Role, name string, password hsm.Secret, factor hsm.SecondFactor) (s hsm.Session, ticket hsm.Secret, err error) {
	done, err := m.h.enter(ctx)
	if err != nil {
		return nil, hsm.Secret{}, err
	}
	defer done()
	defer func() {
		m.h.opts.Audit(ctx, "login", hsm.Principal{Role: role, Name: name}, 0, "", err)
	}()
	u, err := m.h.login(ctx, role, name, password)
	if err == nil && len(u.mfaKey) > 0 {
		err = m.h.second(ctx, u, factor)
	}
	if err != nil {
		return nil, hsm.Secret{}, err
	}
	if ticket, err = m.h.ticket(u); err != nil {
		return nil, hsm.Secret{}, err
	}
	s, err = m.h.userSession(u)
	return s, ticket, err
}

func (h *HSM) login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (user, error) {
	canonical, err := hsm.CanonicalUserName(name)
	u, ok := h.users.get(canonical)
	if err != nil || !ok || role != hsm.RoleNone && u.role != role {
		if err := h.burn(ctx, password); err != nil {
			return user{}, err
		}
		return user{}, loginError()
	}
	last := len(u.mfaKey) == 0
	return u, h.attempt(u.name, last, func() (bool, error) {
		v, err := parseVerifier(u.verifier)
		if err != nil {
			return false, fmt.Errorf("user %q: %w", u.name, err)
		}
		return match(ctx, v, password)
	})
}

// attempt makes a check of a login and counts the outcome, durably, before it tells.
// The last one that is right forgives those that were wrong.
func (h *HSM) attempt(name string, last bool, check func() (right bool, err error)) error {
	locked, done, err := h.attempts.begin(name, h.failures)
	if err != nil || locked {
		return lockedOr(err, name)
	}
	defer done()
	right, err := check()
	switch {
	case err != nil:
		return err
	case right && last:
		return h.unlock(name)
	case right:
		return nil
	}
	if err := h.failed(name); err != nil {
		return err
	}
	return loginError()
}

// second has a user whose password was right sign a challenge that is made for this
// login and dies with it. Nothing is held while the user is waited for.
func (h *HSM) second(ctx context.Context, u user, factor hsm.SecondFactor) error {
	if factor == nil {
		return fmt.Errorf("%w: %w: user %q has a key for logins (--mfa)", hsm.ErrLogin, hsm.ErrMFA, u.name)
	}
	c := hsm.LoginChallenge{User: u.name, HSM: h.opts.ID, Cluster: h.opts.Cluster, Lineage: h.keys().Lineage(), Expires: h.opts.Now().Add(hsm.ChallengeLife)}
	rand.Read(c.Nonce[:])
	challenge := c.Encode()
	waiting, cancel := context.WithTimeout(ctx, hsm.ChallengeLife)
	defer cancel()
	signature, err := factor(waiting, challenge)
	switch {
	case waiting.Err() != nil && ctx.Err() == nil, err == nil && h.opts.Now().After(c.Expires):
		return fmt.Errorf("%w: the challenge was not answered in time", hsm.ErrLogin)
	case err != nil:
		return err
	}
	key, err := hsm.ParseSignerKey(u.mfaKey)
	if err != nil {
		return fmt.Errorf("user %q: %w", u.name, err)
	}
	if now, _ := h.users.get(u.name); !hmac.Equal(now.fingerprint(), u.fingerprint()) {
		return loginError() // deleted, or changed, while it was waited for
	}
	return h.attempt(u.name, true, func() (bool, error) { return key.Verify(challenge, signature) == nil, nil })
}

func loginError() error { return fmt.Errorf("%w: unknown user, role or password", hsm.ErrLogin) }

func match(ctx context.Context, v verifier, password hsm.Secret) (bool, error) {
	select {
	case hashing <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-hashing }()
	return v.matches(password), nil
}

// burn spends the time of a password check.
func (h *HSM) burn(ctx context.Context, password hsm.Secret) error {
	_, err := match(ctx, verifier{Iterations: h.opts.Iterations, Salt: make([]byte, verifierSalt)}, password)
	return err
}

// ticketBody is what a ticket vouches for: deterministic CBOR, after its
// HMAC-SHA-256 under the cluster's ticket key.
type ticketBody struct {
	_        struct{} `cbor:",toarray"`
	User     string
	Role     hsm.Role
	Verifier []byte // SHA-256 of the user's incarnation, verifier and key for logins
	Expiry   int64  // Unix milliseconds
}

func (u user) fingerprint() []byte {
	h := sha256.New()
	h.Write(counterValue(u.incarnation))
	h.Write(u.verifier)
	h.Write(u.mfaKey) // a ticket of before the key was registered is none
	return h.Sum(nil)
}

func (h *HSM) ticket(u user) (hsm.Secret, error) {
	b, err := cborMode.Marshal(ticketBody{User: u.name, Role: u.role, Verifier: u.fingerprint(), Expiry: h.opts.Now().Add(ticketLife).UnixMilli()})
	if err != nil {
		return hsm.Secret{}, fmt.Errorf("ticket for %q: %w", u.name, err)
	}
	return hsm.NewSecret(append(h.ticketMAC(b), b...)), nil
}

func (h *HSM) ticketMAC(body []byte) []byte {
	m := hmac.New(sha256.New, h.tickets.Reveal())
	m.Write([]byte("hsmbackup login ticket v1\x00"))
	m.Write(body)
	return m.Sum(nil)
}

// Redeem implements hsm.Module. The ticket is checked against what this HSM
// knows of the user, which may lag behind for a moment: then it is ErrLogin, and
// worth another try.
func (m *module) Redeem(ctx context.Context, ticket hsm.Secret) (s hsm.Session, err error) {
	done, err := m.h.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var who hsm.Principal
	defer func() { m.h.opts.Audit(ctx, "redeem", who, 0, "", err) }()
	u, err := m.h.redeem(ticket)
	if err != nil {
		return nil, err
	}
	who = hsm.Principal{Role: u.role, Name: u.name}
	return m.h.userSession(u)
}

func (h *HSM) redeem(ticket hsm.Secret) (user, error) {
	b := ticket.Reveal()
	if len(b) < sha256.Size || !hmac.Equal(b[:sha256.Size], h.ticketMAC(b[sha256.Size:])) {
		return user{}, fmt.Errorf("%w: the ticket is not one of this cluster; log in with the password", hsm.ErrLogin)
	}
	var t ticketBody
	if err := cbor.Unmarshal(b[sha256.Size:], &t); err != nil {
		return user{}, fmt.Errorf("%w: the ticket does not decode; log in with the password", hsm.ErrLogin)
	}
	if h.opts.Now().UnixMilli() > t.Expiry {
		return user{}, fmt.Errorf("%w: the ticket has expired; log in with the password", hsm.ErrLogin)
	}
	u, ok := h.users.get(t.User)
	if !ok || u.role != t.Role || !hmac.Equal(u.fingerprint(), t.Verifier) {
		return user{}, fmt.Errorf("%w: HSM %s knows no such user with this password (yet); try again in a moment, or log in with the password", hsm.ErrLogin, h.opts.ID)
	}
	if locked, err := h.locked(u.name); err != nil || locked {
		return user{}, lockedOr(err, u.name)
	}
	return u, nil
}

func lockedOr(err error, name string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %q; an admin unlocks it with user unlock", hsm.ErrLocked, name)
}

// Session implements hsm.Module.
func (m *module) Session(ctx context.Context) (hsm.Session, error) {
	done, err := m.h.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return m.h.newSession(m.who), nil
}

// Close implements hsm.Module. There is nothing to release.
func (m *module) Close() error { return nil }
