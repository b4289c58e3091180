package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// signerOf registers a key for a use, as the user the client is logged in as.
func (w *world) signerOf(c *Cluster, kind hsm.ChangeKind, use hsm.SignerUse) *ecdsa.PrivateKey {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	name := c.auth.principal().Name
	proof, err := hsm.SignWith(key, hsm.RegistrationMessage(use, w.profile().Lineage, name, spki))
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := c.Change(w.t.Context(), hsm.Change{Kind: kind, User: name, Public: spki, Proof: proof}); err != nil {
		w.t.Fatal(err)
	}
	w.sync() // an HSM that was slow has it too
	return key
}

// TestSecondFactorIsAskedOnce: for three HSMs; and who cannot answer is not asked
// again.
func TestSecondFactorIsAskedOnce(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	key := w.signerOf(w.open(asUser), hsm.ChangeUserMFA, hsm.SignLogin)
	var asked atomic.Int32
	open := func(factor hsm.SecondFactor) error {
		asked.Store(0)
		cred := asUser
		cred.SecondFactor = factor
		c, err := Open(t.Context(), w.profile(), cred, WithDialer(w.dialer(hsm.RoleNone)), withTiming(fast))
		if err == nil {
			w.awaitUp(c)
			err = c.Close()
		}
		return err
	}
	err := open(func(_ context.Context, challenge []byte) ([]byte, error) {
		asked.Add(1)
		return hsm.SignWith(key, challenge)
	})
	if err != nil || asked.Load() != 1 {
		t.Errorf("asked %d times: %v", asked.Load(), err)
	}
	err = open(func(context.Context, []byte) ([]byte, error) {
		asked.Add(1)
		return nil, errors.New("the key is at home")
	})
	if !errors.Is(err, hsm.ErrLogin) || asked.Load() != 1 {
		t.Errorf("asked %d times: %v", asked.Load(), err)
	}
	if err := open(nil); !errors.Is(err, hsm.ErrMFA) {
		t.Errorf("without a second factor: %v", err)
	}
}

// TestApprovedChange: what takes approval is done on the HSM that issued the token,
// and copied to the others; without that HSM it is not done.
func TestApprovedChange(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(asAdmin)
	w.awaitUp(c)
	create := func(name string, role hsm.Role, as ...hsm.Approval) (*Changed, error) {
		return c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: role, Password: secret("a-password-9"), Approvals: as})
	}
	if _, err := create("second", hsm.RoleAdmin); err != nil {
		t.Fatal(err)
	}
	w.sync()
	keys := map[string]*ecdsa.PrivateKey{adminName: w.signerOf(c, hsm.ChangeUserQuorum, hsm.SignQuorum)}
	keys["second"] = w.signerOf(w.open(Credential{Role: hsm.RoleAdmin, Name: "second", Password: secret("a-password-9")}), hsm.ChangeUserQuorum, hsm.SignQuorum)
	if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeQuorumValue, Name: "user", Value: "2"}); err != nil {
		t.Fatal(err)
	}
	w.sync()
	if v, err := c.QuorumValues(t.Context()); err != nil || v.User != 2 {
		t.Errorf("values %+v, %v", v, err)
	}
	approval := func() hsm.Approval {
		token, err := c.QuorumToken(t.Context(), hsm.ServiceUser, 0)
		if err != nil {
			t.Fatal(err)
		}
		a := hsm.Approval{Token: token}
		for name, key := range keys {
			signature, err := hsm.SignWith(key, token)
			if err != nil {
				t.Fatal(err)
			}
			a.Signatures = append(a.Signatures, hsm.ApprovalSignature{User: name, Signature: signature})
		}
		return a
	}
	if _, err := create("carol", hsm.RoleCryptoUser); !errors.Is(err, hsm.ErrQuorum) {
		t.Errorf("without approval: %v", err)
	}
	used := approval()
	if changed, err := create("carol", hsm.RoleCryptoUser, used); err != nil || len(changed.Copies) < 2 {
		t.Errorf("with approval: %+v, %v", changed, err)
	}
	if _, err := create("dave", hsm.RoleCryptoUser, used); !errors.Is(err, hsm.ErrQuorum) {
		t.Errorf("with the same token: %v", err)
	}
	w.sync()
	if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: "carol", Approvals: []hsm.Approval{approval()}}); err != nil {
		t.Errorf("unlock: %v", err)
	}
	waiting := approval()
	issued, err := hsm.ParseQuorumToken(waiting.Token)
	if err != nil {
		t.Fatal(err)
	}
	foreign := issued
	foreign.HSM++
	if _, err := create("dave", hsm.RoleCryptoUser, waiting, hsm.Approval{Token: foreign.Encode()}); !errors.Is(err, hsm.ErrQuorum) {
		t.Errorf("tokens of two HSMs: %v", err)
	}
	if _, err := create("dave", hsm.RoleCryptoUser, hsm.Approval{Token: foreign.Encode()}); !errors.Is(err, hsm.ErrQuorum) {
		t.Errorf("a token of no member: %v", err)
	}
	for _, b := range w.boxes {
		if b.member.ID == issued.HSM {
			b.away.Store(true)
		}
	}
	if _, err := create("dave", hsm.RoleCryptoUser, waiting); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("while the HSM is away: %v", err)
	}
	if _, err := create("dave", hsm.RoleCryptoUser, approval()); err != nil {
		t.Errorf("with a token of another HSM: %v", err)
	}
}

// TestQuorumTokensOfAllHSMs: each HSM is asked for those it has issued; what one that is
// away has issued is neither listed nor deleted, and that is said.
func TestQuorumTokensOfAllHSMs(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	admin := w.open(asAdmin)
	w.awaitUp(admin)
	ctx := t.Context()
	if timeouts, err := admin.QuorumTimeouts(ctx); err != nil || timeouts != (hsm.QuorumTimeouts{Generated: hsm.TokenLife, Approved: hsm.TokenLife}) {
		t.Errorf("timeouts %+v, %v", timeouts, err)
	}
	if changed, err := admin.Change(ctx, hsm.Change{Kind: hsm.ChangeQuorumTimeout, Name: hsm.TimeoutGenerated, Value: "900"}); err != nil || len(changed.Copies) < 2 {
		t.Fatalf("%+v, %v", changed, err)
	}
	w.sync()
	issued := map[hsm.HSMID]bool{}
	issue := func(away int) {
		t.Helper()
		w.boxes[away].away.Store(true)
		token, err := admin.QuorumToken(ctx, hsm.ServiceUser, 0)
		w.boxes[away].away.Store(false)
		if err != nil {
			t.Fatal(err)
		}
		q, err := hsm.ParseQuorumToken(token)
		if err != nil || q.Expires.Sub(q.Issued) != 15*time.Minute {
			t.Fatalf("%+v, %v", q, err)
		}
		issued[q.HSM] = true
		w.awaitUp(admin)
	}
	first := slices.IndexFunc(w.boxes, func(b *box) bool {
		return !slices.ContainsFunc(w.boxes, func(o *box) bool { return o.member.ID < b.member.ID })
	})
	issue((first + 1) % 3) // by the first
	issue(first)           // by the next
	user := w.open(asUser)
	w.awaitUp(user)
	for who, c := range map[string]*Cluster{"admin": admin, "crypto user": user} {
		tokens, missing, err := c.QuorumTokens(ctx)
		if err != nil || len(missing) != 0 || len(tokens) != 2 || len(issued) != 2 {
			t.Fatalf("%s: %+v, missing %v, %v", who, tokens, missing, err)
		}
		for _, token := range tokens {
			if !issued[token.HSM] || token.Requester != adminName || token.Service != hsm.ServiceUser {
				t.Errorf("%s: %+v", who, token)
			}
		}
	}
	if _, err := user.DeleteQuorumTokens(ctx, true); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("a crypto user deletes tokens: %v", err)
	}
	w.boxes[first].away.Store(true)
	if tokens, missing, err := admin.QuorumTokens(ctx); err != nil || len(tokens) != 1 || !slices.Equal(missing, []hsm.HSMID{w.boxes[first].member.ID}) {
		t.Errorf("with one away: %+v, missing %v, %v", tokens, missing, err)
	}
	if n, err := admin.DeleteQuorumTokens(ctx, true); n != 1 || !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("with one away, %d deleted: %v", n, err)
	}
	w.boxes[first].away.Store(false)
	w.awaitUp(admin)
	if n, err := admin.DeleteQuorumTokens(ctx, false); n != 1 || err != nil {
		t.Errorf("%d deleted: %v", n, err)
	}
	if tokens, _, err := admin.QuorumTokens(ctx); err != nil || len(tokens) != 0 {
		t.Errorf("after all: %+v, %v", tokens, err)
	}
}
