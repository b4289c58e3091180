package format

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The identity of the vectors; it protects nothing.
const vectorIdentityFile = "../testdata/vectors/identity.txt"

func vectorIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	b, err := os.ReadFile(vectorIdentityFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "AGE-SECRET-KEY-1") {
			id, err := age.ParseX25519Identity(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
	}
	t.Fatal("no identity")
	return nil
}

func testKeyring(t testing.TB) *hsm.Keyring {
	t.Helper()
	k, err := hsm.OpenKeyring(hsm.NewSecret(bytes.Repeat([]byte{1}, hsm.KeySize)), map[uint64]hsm.Secret{1: hsm.NewSecret(bytes.Repeat([]byte{2}, hsm.KeySize))})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// testObjects makes n keys with references 1, 2, … and ends with a tombstone.
func testObjects(t testing.TB, n int) (out []hsm.MaskedObject) {
	t.Helper()
	k := testKeyring(t)
	for i := range n {
		at := hsm.Stamp{Time: uint64(i+1) << 16, HSM: 5}
		r := &hsm.Record{
			Kind: hsm.KindKey, Ref: hsm.KeyRef(i + 1), Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{},
			Core:     hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: 32, Origin: hsm.MethodGenerate, Created: at, Owner: "owner"},
			Material: hsm.NewSecret(bytes.Repeat([]byte{byte(i)}, 32)),
		}
		r.Set(hsm.AttributeRegister("label"), fmt.Appendf(nil, "key %d", i), at)
		birth, err := k.Birth(r)
		if err != nil {
			t.Fatal(err)
		}
		r.Birth = birth
		if i == n-1 && n > 1 {
			r.Destroy()
		}
		m, err := k.Mask(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func testPack(t testing.TB, blocks ...[]hsm.MaskedObject) Pack {
	t.Helper()
	w, err := NewPackWriter(testKeyring(t).Lineage(), []age.Recipient{vectorIdentity(t).Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if err := w.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	p, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testManifest(t testing.TB) *Manifest {
	t.Helper()
	k := testKeyring(t)
	return &Manifest{
		Sequence: 7, Parent: 6, Started: time.UnixMilli(1_700_000_000_000).UTC(), Created: time.UnixMilli(1_700_000_001_000).UTC(),
		Lineage: k.Lineage(), Cluster: 9, ClusterName: "prod", Region: "eu-1", Fingerprints: k.FingerprintKeys(),
		Root: hsm.Root{Sum: [32]byte{1}, Count: 3}, Live: map[hsm.Kind]uint64{hsm.KindKey: 1, hsm.KindUser: 1}, Tombstones: 1,
		Cells:    []hsm.Cell{{Item: [24]byte{1}, Check: 2, Count: -3}, {Count: 1}},
		Packs:    []PackEntry{{Pack: Name{1}, Size: 10, Objects: 3, Index: Name{2}, IndexSize: 20}, {Pack: Name{3}, Size: 1, Objects: 1, Index: Name{4}, IndexSize: 1, Alternate: true}},
		Envelope: Name{5}, Custody: [32]byte{6}, Epoch: 1, Recipients: [32]byte{7},
		Answered: []hsm.HSMID{1, 2}, Missing: []hsm.HSMID{3}, Covers: []hsm.HSMID{1},
		Unsettled: []Version{{Ref: 1, Digest: hsm.Digest{1}, HSM: 1}, {Ref: 1, Digest: hsm.Digest{2}, HSM: 2}},
		Tags:      map[string]string{"why": "test"}, Software: "v1.2.3",
	}
}

func signManifest(t testing.TB, body []byte) []byte {
	t.Helper()
	stored, err := EncodeManifest(body, testKeyring(t).Sign(hsm.PurposeManifest, body))
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

// readPack reads a pack to its end and returns the objects before any failure.
func readPack(stored []byte, ids ...age.Identity) (objects [][]byte, err error) {
	r, err := NewPackReader(stored, ids)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return objects, err
		}
		for i := range b.Len() {
			m, err := hsm.JoinMasked(b.Columns(i))
			if err != nil {
				return objects, fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			objects = append(objects, slices.Clone(m))
		}
	}
}
