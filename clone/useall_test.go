package clone

import (
	"errors"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

func TestUseAllUsesEveryType(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m := newMemory(t, v, 1)
	keys := m.everyKey(t)
	gone := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
	insert(t, m.hsms[0], mask(t, m.keyring, gone))
	m.hsms[0].Destroy(gone.Ref)
	used, err := UseAll(t.Context(), v.take(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if used.Keys != keys || used.Checked != keys-1 || len(used.Failures) != 0 { // a generic secret has no check value
		t.Errorf("used %+v, want %d keys, all but one with check value", used, keys)
	}
}

// TestUseAllFindsKeysThatDoNotWork: records that authenticate, since an HSM made
// them, and are wrong all the same.
func TestUseAllFindsKeysThatDoNotWork(t *testing.T) {
	t.Parallel()
	otherPublic := records(t, mech.Spec{Type: mech.EC, Curve: mech.Secp256r1})[1]
	for name, c := range map[string]struct {
		spec  mech.Spec
		spoil func(private, public *hsm.Record) *hsm.Record
		says  string
	}{
		"check value of a secret": {mech.Spec{Type: mech.AES, Size: 32}, func(r, _ *hsm.Record) *hsm.Record { r.Core.Check = []byte{1, 2, 3}; return r }, "check value"},
		"no check value":          {mech.Spec{Type: mech.AES, Size: 32}, func(r, _ *hsm.Record) *hsm.Record { r.Core.Check = nil; return r }, "check value"},
		"check value of a pair":   {mech.Spec{Type: mech.Ed25519}, func(_, r *hsm.Record) *hsm.Record { r.Core.Check = []byte{1, 2, 3}; return r }, "check value"},
		"another public key": {mech.Spec{Type: mech.EC, Curve: mech.Secp256r1}, func(r, _ *hsm.Record) *hsm.Record {
			r.Core.Public, r.Core.Check = otherPublic.Core.Public, otherPublic.Core.Check
			return r
		}, "does not accept its signature"},
		"a secret that is none":      {mech.Spec{Type: mech.AES, Size: 32}, func(r, _ *hsm.Record) *hsm.Record { r.Material = secret("seventeen bytes!!"); return r }, "size"},
		"a private key that is none": {mech.Spec{Type: mech.Ed25519}, func(r, _ *hsm.Record) *hsm.Record { r.Material = secret("nothing"); return r }, ""},
		"a public key that is none":  {mech.Spec{Type: mech.Ed25519}, func(_, r *hsm.Record) *hsm.Record { r.Core.Public = []byte("nothing"); return r }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVault(t)
			m := newMemory(t, v, 1)
			good := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
			pair := records(t, c.spec)
			bad := c.spoil(pair[0], pair[len(pair)-1])
			insert(t, m.hsms[0], mask(t, m.keyring, good), mask(t, m.keyring, bad))
			used, err := UseAll(t.Context(), v.take(t, m))
			if err != nil {
				t.Fatal(err)
			}
			if used.Keys != 1 || len(used.Failures) != 1 || !strings.Contains(used.Failures[0], bad.Ref.String()) || !strings.Contains(used.Failures[0], c.says) {
				t.Errorf("used %+v, want one good key and one failure that names %s and says %q", used, bad.Ref, c.says)
			}
		})
	}
}

func TestUseAllNeedsTheIdentities(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m := newMemory(t, v, 1)
	v.take(t, m)
	s, err := backup.Open(t.Context(), v.store, "", backup.OpenOptions{Identities: []backup.Identity{newVault(t).identity}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := UseAll(t.Context(), s); !errors.Is(err, backup.ErrIdentity) {
		t.Errorf("got %v, want ErrIdentity", err)
	}
}
