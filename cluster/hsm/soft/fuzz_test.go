package soft

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// FuzzRedeem: only tickets that this cluster made open a session.
func FuzzRedeem(f *testing.F) {
	h := withUser(f, open(f, testOptions(vfs.NewMem())))
	u, _ := h.users.get("alice")
	good := must[hsm.Secret](f)(h.ticket(u)).Reveal()
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := h.redeem(hsm.NewSecret(bytes.Clone(b)))
		if bytes.Equal(b, good) != (err == nil) {
			t.Errorf("redeemed %x: %v", b, err)
		}
		if err != nil && !errors.Is(err, hsm.ErrLogin) {
			t.Errorf("%v, want ErrLogin", err)
		}
	})
}

// FuzzStoredRows: rows of the store that are damaged are refused and do no
// harm.
func FuzzStoredRows(f *testing.F) {
	f.Add(must[[]byte](f)(floorRow{Version: floorVersion, Counts: make([]uint64, 2), Sums: make([][]byte, 2)}.encode()))
	f.Add(must[[]byte](f)(newVerifier(hsm.NewSecret([]byte(testPassword)), 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if row, err := decodeFloor(b); err == nil && len(row.Counts) != len(scopes) {
			t.Error("a floor of other scopes")
		}
		if v, err := parseVerifier(b); err == nil && (v.Iterations < 1 || v.Iterations > maxIterations) {
			t.Error("a verifier out of bounds")
		}
		if _, err := parseMark(b); err != nil && !errors.Is(err, hsm.ErrCorrupt) {
			t.Error(err)
		}
		for _, n := range []int{0, 1, 24, 25} {
			if _, _, err := markOf(b[:min(n, len(b))]); err != nil && !errors.Is(err, hsm.ErrCorrupt) {
				t.Error(err)
			}
		}
		if _, err := decodeDigest(1, b); err != nil && !errors.Is(err, hsm.ErrCorrupt) {
			t.Error(err)
		}
	})
}
