package hsmtest

import (
	"context"
	"errors"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// enter logs alice in with a second factor.
func (n *node) enter(pw hsm.Secret, factor hsm.SecondFactor) (hsm.Secret, error) {
	n.w.Helper()
	able, ok := n.module().(hsm.MFA)
	if !ok {
		n.w.Fatal("the module has no second factor")
	}
	s, ticket, err := able.LoginMFA(n.ctx(), hsm.RoleCryptoUser, alice, pw, factor)
	if err == nil {
		_ = s.Close()
	}
	return ticket, err
}

// answers signs what it is asked, and keeps the challenge.
func (w *world) answers(s signer, last *[]byte) hsm.SecondFactor {
	return func(_ context.Context, challenge []byte) ([]byte, error) {
		*last = challenge
		return hsm.SignWith(s.key, challenge)
	}
}

func testMFA(w *world) {
	n := w.node()
	s, key := n.user(alice), w.signer(alice)
	var first, second []byte
	_, old, err := n.module().Login(n.ctx(), hsm.RoleCryptoUser, alice, password(alice))
	w.ok(err)
	_, err = n.enter(password(alice), w.answers(key, &first))
	w.ok(err)
	if first != nil {
		w.Error("a user without a key was asked for a second factor")
	}
	w.must(s.Change(n.ctx(), w.registration(key, hsm.ChangeUserMFA, hsm.SignLogin)))

	_, err = n.module().Redeem(n.ctx(), old)
	w.want("a ticket of before", err, hsm.ErrLogin)
	err = n.tryLogin(hsm.RoleCryptoUser, alice, password(alice))
	w.want("the password alone", err, hsm.ErrMFA)
	w.want("the password alone", err, hsm.ErrLogin)
	ticket, err := n.enter(password(alice), w.answers(key, &first))
	w.ok(err)
	c, err := hsm.ParseLoginChallenge(first)
	if err != nil || c.User != alice || c.HSM != n.id || c.Cluster != w.cluster {
		w.Errorf("the challenge is %+v, %v", c, err)
	}
	redeemed, err := n.module().Redeem(n.ctx(), ticket)
	w.ok(err)
	w.ok(redeemed.Close())

	replayed := w.signed(key, first)
	_, err = n.enter(password(alice), func(_ context.Context, challenge []byte) ([]byte, error) { second = challenge; return replayed, nil })
	w.want("the answer to an earlier challenge", err, hsm.ErrLogin)
	if string(first) == string(second) {
		w.Error("the same challenge twice")
	}
	_, err = n.enter(password(alice), w.answers(w.signer(alice), &second))
	w.want("another key", err, hsm.ErrLogin)
	_, err = n.enter(password(bob), w.answers(key, &second))
	w.want("another password", err, hsm.ErrLogin)
	gone := errors.New("nobody is there")
	_, err = n.enter(password(alice), func(context.Context, []byte) ([]byte, error) { return nil, gone })
	if err == nil {
		w.Error("logged in without an answer")
	}
	_, err = n.enter(password(alice), func(ctx context.Context, challenge []byte) ([]byte, error) {
		w.advance(hsm.ChallengeLife + 1)
		return hsm.SignWith(key.key, challenge)
	})
	w.want("too late", err, hsm.ErrLogin)
	w.mfaEverywhere(n, key)
}

// mfaEverywhere has the key on another HSM, locks the user, and takes the key away.
func (w *world) mfaEverywhere(n *node, key signer) {
	w.Helper()
	other, last := w.empty(), []byte{}
	w.sync(n, other)
	w.want("the password alone on another HSM", other.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrMFA)
	_, err := other.enter(password(alice), w.answers(key, &last))
	w.ok(err)
	wrong := w.signer(alice)
	for range hsm.MaxFailedLogins + 1 {
		_, err := other.enter(password(alice), w.answers(wrong, &last))
		w.want("a wrong answer", err, hsm.ErrLogin)
	}
	_, err = other.enter(password(alice), w.answers(key, &last))
	w.want("after too many wrong answers", err, hsm.ErrLocked)
	w.must(other.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: alice}))
	other.fail(hsm.MaxFailedLogins)
	w.want("the password alone", other.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrMFA)
	other.fail(1) // which the password alone has not forgiven
	_, err = other.enter(password(alice), w.answers(key, &last))
	w.want("after too many wrong passwords", err, hsm.ErrLocked)
	w.must(other.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: alice}))
	w.must(other.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserMFA, User: alice}))
	w.ok(other.tryLogin(hsm.RoleCryptoUser, alice, password(alice)))
}
