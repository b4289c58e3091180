package backup

import (
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestPackIdentitiesAreOfTheLineage: equal for equal lineages whatever the
// masking keys, other for other lineages, and as age writes them.
func TestPackIdentitiesAreOfTheLineage(t *testing.T) {
	k := hsm.NewKeyring()
	secret, masking := k.Export()
	masking[7] = hsm.NewSecret(make([]byte, hsm.KeySize))
	rotated, err := hsm.OpenKeyring(secret, masking)
	if err != nil {
		t.Fatal(err)
	}
	a, err := packRecipients(k)
	if err != nil {
		t.Fatal(err)
	}
	b, err := packRecipients(rotated)
	if err != nil || !slices.Equal(a, b) {
		t.Fatalf("rotation changes them: %v", err)
	}
	if c, _ := packRecipients(hsm.NewKeyring()); a[0] == c[0] || a[1] == c[1] {
		t.Fatal("two lineages share an identity")
	}
	hybrid, classic, err := packIdentities(k)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{hybrid.String(), classic.String()} {
		if ids, err := age.ParseIdentities(strings.NewReader(text)); err != nil || len(ids) != 1 {
			t.Fatalf("age does not read it: %v", err)
		}
	}
}

// TestPackIdentityVector pins the derivation: packs of today must be read for
// ever.
func TestPackIdentityVector(t *testing.T) {
	secret := make([]byte, hsm.KeySize)
	for i := range secret {
		secret[i] = byte(i)
	}
	k, err := hsm.OpenKeyring(hsm.NewSecret(secret), map[uint64]hsm.Secret{1: hsm.NewSecret(secret)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := packRecipients(k)
	if err != nil {
		t.Fatal(err)
	}
	if want := "age14am543shqnus5h268h8pzra79480tm9xrnydf3ccl8dydspy759srz4vs6"; got[1] != want {
		t.Errorf("x25519: %s, want %s", got[1], want)
	}
	if want := "d87c647bc15b3dfa81a5ba97921aeb60cdb581f00afae66ae0867f27a817fc10"; format.NameOf([]byte(got[0])).String() != want {
		t.Errorf("hybrid: SHA-256 %s, want %s", format.NameOf([]byte(got[0])), want)
	}
}

// TestCustodiansAloneReadPacks: nobody is named as a recipient, of both kinds of
// named recipient, the lineage's own one stands beside.
func TestCustodiansAloneReadPacks(t *testing.T) {
	for name, recipients := range map[string][]string{"none": nil, "x25519": {newX25519(t).recipient}, "hybrid": {newIdentity(t).recipient}} {
		t.Run(name, func(t *testing.T) {
			c, store := newTestCluster(t, 1), newStore(t)
			keys(c.hsm(0), 10)
			o := c.options()
			o.Recipients = recipients
			mustTake(t, c, store, o)
			keys(c.hsm(0), 2)
			r := mustTake(t, c, store, o)
			if r.Parent == "" || r.NewObjects != 2 || c.sealed != 1 {
				t.Fatalf("%+v, sealed %d times", r, c.sealed)
			}
			s, err := Open(t.Context(), store, "", OpenOptions{Identities: []Identity{c.custodian.Identity}})
			if err != nil {
				t.Fatal(err)
			}
			if n, err := drain(t.Context(), s); err != nil || n != 12 {
				t.Fatalf("%d objects, %v", n, err)
			}
		})
	}
}

// TestNewCustodiansOpenOldSnapshots: custodians change, no pack is touched, and
// every snapshot from before opens for the new ones, with one identity each;
// the old ones keep what they had and get nothing new.
func TestNewCustodiansOpenOldSnapshots(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	o := c.options()
	o.Recipients = nil
	keys(c.hsm(0), 10)
	mustTake(t, c, store, o)
	packs := count(t, store, "packs/")
	before, x, y, z := c.custodian.Identity, newIdentity(t), newIdentity(t), newX25519(t)
	c.custodians, c.threshold = []string{x.recipient, y.recipient, z.recipient}, 2
	if r := mustTake(t, c, store, o); r.NewObjects != 0 || count(t, store, "packs/") != packs {
		t.Fatalf("%+v", r)
	}
	for id, want := range map[string]error{"1": nil, "2": nil} {
		for _, ids := range [][]Identity{{x.Identity, z.Identity}, {y.Identity, x.Identity}} {
			s, err := Open(t.Context(), store, id, OpenOptions{Identities: ids})
			if err != nil {
				t.Fatal(err)
			}
			if n, err := drain(t.Context(), s); err != want || n != 10 {
				t.Fatalf("snapshot %s: %d objects, %v", id, n, err)
			}
			if _, _, err := s.Recovery(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s, _ := Open(t.Context(), store, id, OpenOptions{Identities: []Identity{x.Identity}})
		_, _, err := s.Recovery(t.Context())
		wantErr(t, err, ErrIdentity)
	}
	s, _ := Open(t.Context(), store, "2", OpenOptions{Identities: []Identity{before}})
	_, _, err := s.Recovery(t.Context())
	wantErr(t, err, ErrIdentity)
	if _, err := drain(t.Context(), s); err == nil {
		t.Fatal("a former custodian reads the newest snapshot")
	}
}
