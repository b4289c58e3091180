package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Credential is how to become someone in the cluster.
type Credential struct {
	// Role, Name and Password log a user in; RoleNone stands for whatever role
	// the user has. An empty Name logs nobody in: the
	// rights are those of the certificate, an appliance's or none.
	Role     hsm.Role
	Name     string
	Password hsm.Secret
	// SecondFactor answers for a user who has a key for logins, on each login with the
	// password; nil: such a user is refused with hsm.ErrMFA.
	SecondFactor hsm.SecondFactor
	// Identity is the path of an identity file (certificate and private key,
	// PEM), the appliance's for instance. Empty: the profile's client identity.
	Identity string
}

// refusalPauses are the times for which a password that has worked before is not
// tried again after it was refused. An HSM may refuse because it does not know of
// the user yet; after the last pause the password has been changed, and is given
// up well before it locks the user.
var refusalPauses = []time.Duration{time.Minute, 10 * time.Minute}

// auth logs in on HSMs: the password on one of them, its ticket on the others.
// The password is tried on one HSM at a time, and rarely again once refused, so
// that a client whose password was changed does not lock its user.
type auth struct {
	role     hsm.Role
	name     string
	factor   hsm.SecondFactor
	asking   atomic.Int32 // how many are waiting for the second factor
	password atomic.Pointer[hsm.Secret]
	ticket   atomic.Pointer[hsm.Secret]
	who      atomic.Pointer[hsm.Principal]
	refused  atomic.Pointer[error] // set once the credential is given up

	turn     chan struct{} // held while a password is tried; guards what follows
	refusals int
	resume   time.Time
	stale    *hsm.Secret               // the password that was refused
	unaware  map[hsm.HSMID]*hsm.Secret // the password that an HSM refused while out of touch, which others took
}

// errTurn: another HSM was looking at the password all the time.
var errTurn = errors.New("waiting for another HSM to check the password")

func newAuth(c Credential) *auth {
	a := &auth{role: c.Role, name: c.Name, factor: c.SecondFactor, turn: make(chan struct{}, 1), unaware: map[hsm.HSMID]*hsm.Secret{}}
	a.setPassword(c.Password)
	return a
}

// setPassword keeps a copy, which wipe erases.
func (a *auth) setPassword(p hsm.Secret) {
	s := hsm.NewSecret(slices.Clone(p.Reveal()))
	a.password.Store(&s)
}

func (a *auth) wipe() { a.password.Load().Wipe() }

// principal is who is logged in; the role is the user's own once a login worked.
func (a *auth) principal() hsm.Principal {
	if p := a.who.Load(); p != nil {
		return *p
	}
	return hsm.Principal{Role: a.role, Name: a.name}
}

// is tells whether name is who is logged in.
func (a *auth) is(name string) bool { return a.name != "" && strings.EqualFold(a.name, name) }

// refusal returns why the credential is given up, or nil.
func (a *auth) refusal() error {
	if err := a.refused.Load(); err != nil {
		return *err
	}
	return nil
}

// open starts a session on one HSM. One that is out of touch with the others may not
// know the user, or his new password: before it looks at the first password, yield is
// called, which may wait for another HSM to have done so.
func (a *auth) open(ctx context.Context, m hsm.Module, yield func(context.Context)) (hsm.Session, error) {
	if a.name == "" {
		return m.Session(ctx)
	}
	ticket := a.ticket.Load()
	if ticket != nil {
		s, err := m.Redeem(ctx, *ticket)
		if !errors.Is(err, hsm.ErrLogin) && !errors.Is(err, hsm.ErrSession) {
			return s, err
		}
	}
	// Whoever is first must not hold up the others on an HSM that is away.
	info, err := look(ctx, m)
	if err != nil {
		return nil, err
	}
	if info.OutOfTouch && ticket == nil {
		yield(ctx)
	}
	return a.login(ctx, m, info, ticket)
}

func look(ctx context.Context, m hsm.Module) (hsm.Info, error) {
	s, err := m.Session(ctx)
	if err != nil {
		return hsm.Info{}, err
	}
	info, err := s.Info(ctx)
	return info, errors.Join(err, s.Close())
}

// login tries the password, unless another HSM has given a newer ticket
// meanwhile than the one tried, and this one takes it. info is how this HSM is.
func (a *auth) login(ctx context.Context, m hsm.Module, info hsm.Info, tried *hsm.Secret) (hsm.Session, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errTurn, ctx.Err())
	}
	if newer := a.ticket.Load(); newer != tried {
		s, err := m.Redeem(ctx, *newer)
		if !errors.Is(err, hsm.ErrLogin) && !errors.Is(err, hsm.ErrSession) {
			return s, err
		}
		// The clock of this HSM, or of the one that gave the ticket, is off: the password
		// has worked there, and does here.
	}
	if err := a.mayTry(info); err != nil {
		return nil, err
	}
	password := a.password.Load()
	s, ticket, err := a.present(ctx, m, *password)
	switch {
	case err == nil:
		who := s.Principal()
		a.who.Store(&who)
		a.refusals = 0
		a.ticket.Store(&ticket)
	case isRefusal(err) && info.OutOfTouch && a.ticket.Load() != nil:
		a.unaware[info.ID] = password
	case isRefusal(err):
		a.stale = password
		a.noteRefusal(err)
	}
	return s, err
}

// present logs in, with the second factor where there is one.
func (a *auth) present(ctx context.Context, m hsm.Module, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	if able, ok := m.(hsm.MFA); ok && a.factor != nil {
		return able.LoginMFA(ctx, a.role, a.name, password, func(ctx context.Context, challenge []byte) ([]byte, error) {
			a.asking.Add(1)
			defer a.asking.Add(-1)
			signature, err := a.factor(ctx, challenge)
			if err != nil { // who cannot answer one HSM is not asked by the next
				err = fmt.Errorf("%w: second factor: %w", hsm.ErrLogin, err)
			}
			return signature, err
		})
	}
	return m.Login(ctx, a.role, a.name, password)
}

// patience bounds an attempt to connect: longer while a person is asked for the second
// factor.
func (a *auth) patience(ctx context.Context, connect time.Duration) (context.Context, context.CancelFunc) {
	if a.factor == nil {
		return context.WithTimeout(ctx, connect)
	}
	limited, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for _, d := range []time.Duration{connect, hsm.ChallengeLife} {
			select {
			case <-limited.Done():
				return
			case <-time.After(d):
			}
			if a.asking.Load() == 0 {
				return
			}
		}
	}()
	return limited, cancel
}

// isRefusal tells whether an HSM has looked at a password and does not take it.
func isRefusal(err error) bool {
	return errors.Is(err, hsm.ErrLogin) || errors.Is(err, hsm.ErrLocked) || errors.Is(err, hsm.ErrInvalid)
}

// mayTry refuses what is not worth the failed login that it may count as. What an HSM out
// of touch refuses, and others took, says nothing of the password; it is not asked
// again until it has met the others.
func (a *auth) mayTry(info hsm.Info) error {
	if err := a.refusal(); err != nil {
		return err
	}
	password := a.password.Load()
	if info.OutOfTouch && a.unaware[info.ID] == password {
		return fmt.Errorf("%w: %s refused the password, which others take: it is out of touch with them; see its log, and its clock", hsm.ErrUnavailable, info.ID)
	}
	if wait := time.Until(a.resume); wait > 0 && a.stale == password {
		return fmt.Errorf("%w: the password was refused; it is tried again in %s", hsm.ErrLogin, wait.Round(time.Second))
	}
	return nil
}

// noteRefusal gives the credential up if it has never worked, or not for long.
func (a *auth) noteRefusal(err error) {
	if a.ticket.Load() == nil || a.refusals == len(refusalPauses) {
		a.refused.Store(&err)
		return
	}
	a.resume = time.Now().Add(refusalPauses[a.refusals])
	a.refusals++
}
