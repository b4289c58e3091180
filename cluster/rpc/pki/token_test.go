package pki

import (
	"bytes"

	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"crypto/tls"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func newTestToken(t *testing.T, a *Authority, c hsm.ClusterID) *Token {
	t.Helper()
	token, err := NewToken(c, a.CertPEM(), time.Now().Add(time.Hour), []string{"10.0.0.1:2223", "[::1]:7000", "hsm.example:1"})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestATokenIsReadAsItWasWritten(t *testing.T) {
	token := newTestToken(t, newAuthority(t), hsm.NewClusterID())
	got, err := ParseToken(token.Text())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Seed.Equal(token.Seed) || got.Key() != token.Key() {
		t.Error("another key")
	}
	got.Seed, token.Seed = hsm.Secret{}, hsm.Secret{}
	if d := cmp.Diff(*token, *got, cmp.Comparer(func(a, b hsm.Secret) bool { return a.Equal(b) })); d != "" {
		t.Error(d)
	}
}

// A token that lost any part, or has one character changed, is refused as damaged;
// no error shows any of it.
func TestADamagedTokenIsRefused(t *testing.T) {
	text := newTestToken(t, newAuthority(t), hsm.NewClusterID()).Text().Reveal()
	bad := [][]byte{nil, []byte("hello"), []byte(tokenPrefix), append(bytes.Clone(text), 'A'), append(bytes.Clone(text[:40]), '\n')}
	for i := range text {
		bad = append(bad, text[:i])
		flipped := bytes.Clone(text)
		flipped[i] ^= 1
		bad = append(bad, flipped)
	}
	for _, b := range bad {
		_, err := ParseToken(hsm.NewSecret(bytes.Clone(b)))
		if !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", b, err)
		} else if len(b) > 30 && strings.Contains(err.Error(), string(b[len(b)-20:])) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
}

func TestATokenDoesNotPrint(t *testing.T) {
	token := newTestToken(t, newAuthority(t), hsm.NewClusterID())
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{token, *token} {
			s := fmt.Sprintf(verb, v)
			if strings.Contains(s, fmt.Sprintf("%x", token.Seed.Reveal())) || !strings.HasPrefix(s, "[join token") {
				t.Errorf("%s prints %q", verb, s)
			}
		}
	}
}

func FuzzParseToken(f *testing.F) {
	token := Token{Cluster: 1, Invite: hsm.InviteID{1}, Seed: hsm.NewSecret(make([]byte, 32)), Expires: time.Unix(1e9, 0), Addresses: []string{"a:1"}}
	f.Add(string(token.Text().Reveal()))
	f.Add(tokenPrefix + "AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseToken(hsm.NewSecret([]byte(s)))
		if err != nil {
			return
		}
		if again := got.Text(); string(again.Reveal()) != strings.TrimSpace(s) {
			t.Errorf("%q is read, and written as %q", s, again.Reveal())
		}
	})
}

// handshake makes a TLS connection between both and returns what each says.
func handshakeBoth(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	return <-done, clientErr
}

// TestWhoMayJoin: only the token's key opens a joiner's connection, only to an HSM
// of the token's cluster under the authority that it pins, and neither certificate
// passes for the other kind.
func TestWhoMayJoin(t *testing.T) {
	a, c, id := newAuthority(t), hsm.NewClusterID(), hsm.NewHSMID()
	cert, key := issue(t, a, HSMIdentity(c, id))
	token := newTestToken(t, a, c)
	serving, err := NewServing(cert, key, a.CertPEM(), c, Checks{Invite: func(name string) ([32]byte, error) {
		if name != token.Invite.String() {
			return [32]byte{}, hsm.ErrNotFound
		}
		return token.Key(), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	config := func(change func(*Token)) *tls.Config {
		other := *token
		change(&other)
		cfg, err := JoinConfig(&other)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	if s, cl := handshakeBoth(t, serving.Config(), config(func(*Token) {})); s != nil || cl != nil {
		t.Fatalf("the token itself: %v, %v", s, cl)
	}
	stranger := newTestToken(t, a, c)
	for name, tc := range map[string]struct {
		change         func(*Token)
		server, client error
	}{
		"another key":       {func(o *Token) { o.Seed = stranger.Seed }, ErrForeign, nil},
		"an unknown one":    {func(o *Token) { o.Invite = stranger.Invite }, hsm.ErrNotFound, nil},
		"another cluster":   {func(o *Token) { o.Cluster++ }, nil, ErrCluster},
		"another authority": {func(o *Token) { o.CA[0]++ }, nil, ErrForeign},
	} {
		s, cl := handshakeBoth(t, serving.Config(), config(tc.change))
		if tc.server != nil && !errors.Is(s, tc.server) || tc.client != nil && !errors.Is(cl, tc.client) || cl == nil {
			t.Errorf("%s: server %v, joiner %v", name, s, cl)
		}
	}
	t.Run("a joiner's certificate elsewhere", func(t *testing.T) {
		cfg := config(func(*Token) {})
		cfg.ServerName, cfg.VerifyConnection = "", nil
		if s, _ := handshakeBoth(t, serving.Config(), cfg); !errors.Is(s, ErrForeign) {
			t.Errorf("%v, want ErrForeign", s)
		}
	})
	t.Run("a member's certificate for a joiner's", func(t *testing.T) {
		cfg, err := ClientConfig(cert, key, a.CertPEM(), c)
		if err != nil {
			t.Fatal(err)
		}
		cfg.ServerName = joinName
		if s, _ := handshakeBoth(t, serving.Config(), cfg); !errors.Is(s, ErrKind) {
			t.Errorf("%v, want ErrKind", s)
		}
	})
	t.Run("nobody in between", func(t *testing.T) {
		mine := newAuthority(t) // an attacker's, who answers in the HSM's place
		cert, key := issue(t, mine, HSMIdentity(c, id))
		fake, err := NewServing(cert, key, mine.CertPEM(), c, Checks{Invite: func(string) ([32]byte, error) { return token.Key(), nil }})
		if err != nil {
			t.Fatal(err)
		}
		if _, cl := handshakeBoth(t, fake.Config(), config(func(*Token) {})); !errors.Is(cl, ErrForeign) {
			t.Errorf("%v, want ErrForeign", cl)
		}
	})
	t.Run("the authority signs no joiners", func(t *testing.T) {
		if _, _, err := a.Issue(Identity{c, KindJoiner, token.Invite.String()}, time.Hour); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	})
}

// TestACertificateChangesWhileItServes: connections made after Replace see the new
// one, and a revoked caller is refused in the handshake.
func TestACertificateChangesWhileItServes(t *testing.T) {
	a, c, id := newAuthority(t), hsm.NewClusterID(), hsm.NewHSMID()
	cert, key := issue(t, a, HSMIdentity(c, id))
	revoked := false
	serving, err := NewServing(cert, key, a.CertPEM(), c, Checks{Revoked: func(id Identity, issued time.Time) error {
		if revoked && time.Since(issued) < time.Minute {
			return ErrRevoked
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := serving.Config()
	before := serving.Expires()
	renewed, err := a.Renew(key, HSMIdentity(c, id), 3*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := serving.Replace(renewed); err != nil {
		t.Fatal(err)
	}
	callerCert, callerKey := issue(t, a, Identity{c, KindClient, "app"})
	caller, err := ClientConfig(callerCert, callerKey, a.CertPEM(), c)
	if err != nil {
		t.Fatal(err)
	}
	var shown time.Time
	verify := caller.VerifyConnection
	caller.VerifyConnection = func(s tls.ConnectionState) error { shown = s.PeerCertificates[0].NotAfter; return verify(s) }
	if s, cl := handshakeBoth(t, cfg, caller); s != nil || cl != nil {
		t.Fatal(s, cl)
	}
	if !shown.Equal(serving.Expires()) || shown.Equal(before) {
		t.Errorf("shown %s, want %s, not %s", shown, serving.Expires(), before)
	}
	revoked = true
	if s, cl := handshakeBoth(t, cfg, caller); !errors.Is(s, ErrRevoked) || cl == nil {
		t.Errorf("revoked: %v, %v", s, cl)
	}
	if other, _ := issue(t, a, HSMIdentity(c, id)); serving.Replace(other) == nil {
		t.Error("a certificate for another key was taken")
	}
}
