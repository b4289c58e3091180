package soft

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// withQuorum has the admins "admin" and "second" approve changes of users. The
// function approves a token as both.
func withQuorum(t *testing.T, h *HSM) func(token []byte) []hsm.Approval {
	t.Helper()
	withUser(t, h)
	apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeUserCreate, User: "second", Role: hsm.RoleAdmin, Password: hsm.NewSecret([]byte(testPassword))})
	keys := map[string]*ecdsa.PrivateKey{}
	for _, name := range []string{"admin", "second"} {
		keys[name] = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		spki := must[[]byte](t)(x509.MarshalPKIXPublicKey(keys[name].Public()))
		proof := must[[]byte](t)(hsm.SignWith(keys[name], hsm.RegistrationMessage(hsm.SignQuorum, h.keys().Lineage(), name, spki)))
		apply(t, login(t, h, name), hsm.Change{Kind: hsm.ChangeUserQuorum, User: name, Public: spki, Proof: proof})
	}
	apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeQuorumValue, Name: "user", Value: "2"})
	return func(token []byte) []hsm.Approval {
		a := hsm.Approval{Token: token}
		for name, key := range keys {
			a.Signatures = append(a.Signatures, hsm.ApprovalSignature{User: name, Signature: must[[]byte](t)(hsm.SignWith(key, token))})
		}
		return []hsm.Approval{a}
	}
}

func newcomer(name string, as []hsm.Approval) hsm.Change {
	return hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword)), Approvals: as}
}

// TestTokenDiesWithTheProcess: an HSM that was killed, before or after the operation
// that a token approved, or set back to an older disk, takes no token from before.
func TestTokenDiesWithTheProcess(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprintf("used %t", used), func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			o := testOptions(fs)
			h := open(t, o)
			approve := withQuorum(t, h)
			s := login(t, h, "admin")
			token := must[[]byte](t)(s.Token(t.Context(), hsm.ServiceUser, 0))
			if used {
				apply(t, s, newcomer("carol", approve(token)))
			}
			o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
			h = open(t, o)
			if q := h.info().Quorum; q.User != 2 {
				t.Errorf("the values are %+v after the crash", q)
			}
			if _, there := h.users.get("carol"); there != used {
				t.Errorf("user carol is there: %t", there)
			}
			if _, err := login(t, h, "admin").Change(t.Context(), newcomer("dave", approve(token))); !errors.Is(err, hsm.ErrQuorum) {
				t.Errorf("the token of before the crash: %v", err)
			}
		})
	}
}

// TestTokenIsSpentOnce: of many operations at once with one token one is done.
func TestTokenIsSpentOnce(t *testing.T) {
	h := open(t, testOptions(vfs.NewMem()))
	approve := withQuorum(t, h)
	s := login(t, h, "admin")
	approvals := approve(must[[]byte](t)(s.Token(t.Context(), hsm.ServiceUser, 0)))
	var all sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		all.Go(func() { _, errs[i] = s.Change(t.Context(), newcomer(fmt.Sprintf("user_%d", i), approvals)) })
	}
	all.Wait()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else if !errors.Is(err, hsm.ErrQuorum) {
			t.Error(err)
		}
	}
	if done != 1 {
		t.Errorf("%d operations were done with one token", done)
	}
}

// TestTokensAreBounded: of one user, in all, and by time.
func TestTokensAreBounded(t *testing.T) {
	var table tokenTable
	now := newClock().Now()
	timeouts := hsm.QuorumTimeouts{Generated: hsm.TokenLife, Approved: hsm.TokenLife}
	add := func(user string, n int) error {
		q := hsm.QuorumToken{Service: hsm.ServiceKeyUsage, Key: hsm.KeyRef(n + 1), Requester: user, Expires: now.Add(hsm.TokenLife)}
		return table.add(issued{id: hsm.TokenDigest(fmt.Appendf(nil, "%s %d", user, n)), token: q}, now, timeouts)
	}
	for n := range hsm.MaxTokens {
		if err := add(fmt.Sprint("user", n/hsm.MaxUserTokens), n); err != nil {
			t.Fatal(n, err)
		}
	}
	if err := add("another", 0); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("one too many: %v", err)
	}
	now = now.Add(hsm.TokenLife)
	for n := range hsm.MaxUserTokens {
		if err := add("another", n); err != nil {
			t.Fatal("after the others expired", err)
		}
	}
	if err := add("another", -1); !errors.Is(err, hsm.ErrDenied) || len(table.live) != hsm.MaxUserTokens {
		t.Errorf("one too many of one user: %v, %d tokens", err, len(table.live))
	}
}

// TestApprovalsAreAudited: who approved what is told, and what was refused.
func TestApprovalsAreAudited(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	o := testOptions(vfs.NewMem())
	o.Audit = func(_ context.Context, event string, who hsm.Principal, _ hsm.KeyRef, detail string, err error) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprint(event, " ", who.Name, " ", detail, " ", err == nil))
	}
	h := open(t, o)
	approve := withQuorum(t, h)
	s := login(t, h, "admin")
	if _, err := s.Change(t.Context(), newcomer("carol", nil)); !errors.Is(err, hsm.ErrQuorum) {
		t.Fatal(err)
	}
	approvals := approve(must[[]byte](t)(s.Token(t.Context(), hsm.ServiceUser, 0)))
	apply(t, s, newcomer("carol", approvals))
	log := strings.Join(lines, "\n")
	for _, want := range []string{"quorum admin user needs 2, approved by [] false", "quorum-token admin user true", "quorum admin user needs 2, approved by ["} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit log lacks %q:\n%s", want, log)
		}
	}
}

// TestQuorumFailsClosed: values that this version does not understand ask for the most.
func TestQuorumFailsClosed(t *testing.T) {
	r := &hsm.Record{Kind: hsm.KindPolicy, Registers: map[string]hsm.Register{"user": {Value: []byte("two")}, "quorum": {Value: []byte("0")}, "cluster": {Value: []byte("9")}}}
	if got := readQuorum(r); got != (hsm.QuorumValues{User: hsm.MaxQuorum, Quorum: hsm.MaxQuorum, Cluster: hsm.MaxQuorum}) {
		t.Errorf("%+v", got)
	}
	r.Registers = map[string]hsm.Register{registerGenerated: {Value: []byte("soon")}, registerApproved: {Value: []byte("86401")}}
	if got := readTimeouts(r); got != (hsm.QuorumTimeouts{Generated: hsm.TokenLife, Approved: hsm.TokenLife}) {
		t.Errorf("%+v", got)
	}
	key := &hsm.Record{Kind: hsm.KindKey, Registers: map[string]hsm.Register{hsm.AttributeRegister("use-key-quorum-value"): {Value: []byte{2}}}}
	if n := key.QuorumValue(hsm.ServiceKeyUsage); n != hsm.MaxQuorum {
		t.Error(n)
	}
	if n := key.QuorumValue(hsm.ServiceKeyManagement); n != 0 {
		t.Error(n)
	}
}

// TestTokenWithdrawnWhileItIsTaken: a token whose operation is under way when it is
// withdrawn, or when the next one of the service is issued, does not come back when the
// operation comes to nothing.
func TestTokenWithdrawnWhileItIsTaken(t *testing.T) {
	timeouts := hsm.QuorumTimeouts{Generated: hsm.TokenLife, Approved: hsm.TokenLife}
	now := newClock().Now()
	token := func(nonce byte) issued {
		q := hsm.QuorumToken{Service: hsm.ServiceUser, Requester: "admin", Expires: now.Add(hsm.TokenLife), Nonce: [16]byte{nonce}}
		return issued{id: hsm.TokenDigest(q.Encode()), token: q}
	}
	for name, end := range map[string]func(table *tokenTable) error{
		"withdrawn": func(table *tokenTable) error {
			if n := table.withdraw(func(issued) bool { return true }, now, timeouts); n != 0 {
				return fmt.Errorf("%d waited", n)
			}
			return nil
		},
		"replaced": func(table *tokenTable) error { return table.add(token(2), now, timeouts) },
	} {
		var table tokenTable
		one := token(1)
		if err := errors.Join(table.add(one, now, timeouts), table.take(one.id)); err != nil {
			t.Fatal(name, err)
		}
		if _, ok := table.get(one.token.Encode()); ok || len(table.waiting(now, timeouts)) != 0 || table.take(one.id) == nil {
			t.Errorf("%s: a token that is taken is there", name)
		}
		if err := end(&table); err != nil {
			t.Error(name, err)
		}
		table.giveBack(one.id)
		if _, ok := table.get(one.token.Encode()); ok || table.take(one.id) == nil {
			t.Errorf("%s: the token came back", name)
		}
	}
}
