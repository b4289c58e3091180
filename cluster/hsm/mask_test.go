package hsm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func sampleRecords(t testing.TB, k *Keyring) map[string]*Record {
	return map[string]*Record{
		"aes": aesRecord(t, k), "ec": ecRecord(t, k), "user": userRecord(t, k), "member": memberRecord(t, k), "tombstone": tombstone(t, k),
		"policy":  born(t, k, &Record{Kind: KindPolicy, Ref: PolicyRef("settings")}),
		"lockout": born(t, k, &Record{Kind: KindLockout, Ref: testRef, Cluster: 1}),
	}
}

func TestMaskRoundTrip(t *testing.T) {
	k := testKeyring(t, 1)
	for name, r := range sampleRecords(t, k) {
		m := mask(t, k, r)
		back := result(k.Unmask(m))(t)
		if !sameRecord(back, r) || m.Ref != r.Ref || m.Kind != r.Kind || m.Tombstone != r.Destroyed || m.Lineage != k.Lineage() {
			t.Errorf("%s: comes back as something else", name)
		}
		if again := mask(t, k, back); !bytes.Equal(again.Bytes, m.Bytes) {
			t.Errorf("%s: masks to other bytes the second time", name)
		}
		t.Logf("%s: %d bytes", name, len(m.Bytes))
	}
}

func TestMaskIsDeterministic(t *testing.T) {
	a, b := testKeyring(t, 1), testKeyring(t, 1)
	gen := states(a, aesRecord(t, a))
	rapid.Check(t, func(t *rapid.T) {
		r := gen.Draw(t, "record")
		x, errX := a.Mask(r)
		y, errY := b.Mask(r.Clone())
		if errX != nil || errY != nil || !bytes.Equal(x.Bytes, y.Bytes) {
			t.Fatalf("%v %v: two HSMs, two encodings", errX, errY)
		}
		back, err := b.Unmask(x)
		if err != nil || !sameRecord(back, r) {
			t.Fatalf("round trip: %v", err)
		}
	})
}

// Rotation re-seals and changes no digest.
func TestMaskEpochs(t *testing.T) {
	first, both, second := testKeyring(t, 1), testKeyring(t, 1, 2), testKeyring(t, 2)
	if both.Epoch() != 2 || first.Lineage() != both.Lineage() {
		t.Fatal("the newest masking key seals, and the lineage stays")
	}
	for name, r := range sampleRecords(t, first) {
		before, after := mask(t, first, r), mask(t, both, r)
		if before.Object != after.Object {
			t.Errorf("%s: rotation changed the object", name)
		}
		if bytes.Equal(before.Bytes, after.Bytes) != r.Destroyed {
			t.Errorf("%s: bytes equal: %v; a tombstone has no epoch, all else is re-sealed", name, !r.Destroyed)
		}
		for _, m := range []MaskedObject{before, after} {
			if back := result(both.Unmask(m))(t); !sameRecord(back, r) {
				t.Errorf("%s: comes back as something else", name)
			}
		}
		if !r.Destroyed {
			_, err := second.Unmask(before)
			wantErr(t, name+": without its masking key", err, ErrCorrupt)
		}
	}
}

// Every bit counts, in the bytes and in the header.
func TestUnmaskRefusesEveryBitFlip(t *testing.T) {
	k := testKeyring(t, 1, 2)
	for name, r := range sampleRecords(t, k) {
		m := mask(t, k, r)
		for i := range len(m.Bytes) * 8 {
			b := bytes.Clone(m.Bytes)
			b[i/8] ^= 1 << (i % 8)
			for _, claim := range []MaskedObject{claimOf(k, b), {Object: m.Object, Lineage: m.Lineage, Bytes: b}} {
				if _, err := k.Unmask(claim); err == nil {
					t.Fatalf("%s: bit %d of byte %d of %x may be flipped", name, i%8, i/8, m.Bytes)
				}
			}
		}
	}
}

func TestUnmaskRefusesTruncation(t *testing.T) {
	k := testKeyring(t, 1)
	for name, r := range sampleRecords(t, k) {
		m := mask(t, k, r)
		for n := range m.Bytes {
			cut := m
			cut.Bytes = m.Bytes[:n:n]
			_, err := k.Unmask(cut)
			wantErr(t, fmt.Sprintf("%s cut to %d bytes", name, n), err, ErrCorrupt)
		}
		m.Bytes = append(bytes.Clone(m.Bytes), 0)
		_, err := k.Unmask(m)
		wantErr(t, name+" with a byte too many", err, ErrCorrupt)
	}
}

func TestUnmaskLineage(t *testing.T) {
	k, other := testKeyring(t, 1), NewKeyring()
	m := mask(t, other, aesRecord(t, other))
	_, err := k.Unmask(m)
	wantErr(t, "another lineage's object", err, ErrLineage)
	m.Lineage = k.Lineage()
	_, err = k.Unmask(m)
	wantErr(t, "another lineage's bytes", err, ErrLineage)
	m = mask(t, k, aesRecord(t, k))
	m.Lineage = other.Lineage()
	_, err = k.Unmask(m)
	wantErr(t, "another lineage's header", err, ErrLineage)
}

func TestUnmaskHeader(t *testing.T) {
	k := testKeyring(t, 1)
	for name, change := range map[string]func(*Object){
		"reference": func(o *Object) { o.Ref++ },
		"kind":      func(o *Object) { o.Kind = KindUser },
		"tombstone": func(o *Object) { o.Tombstone = true },
		"digest":    func(o *Object) { o.Digest[15] ^= 1 },
		"all":       func(o *Object) { *o = Object{} },
	} {
		m := mask(t, k, aesRecord(t, k))
		change(&m.Object)
		_, err := k.Unmask(m)
		wantErr(t, "other "+name, err, ErrCorrupt)
	}
}

func TestTombstoneIsSmall(t *testing.T) {
	k := testKeyring(t, 1)
	m := mask(t, k, tombstone(t, k))
	t.Logf("tombstone: %d bytes", len(m.Bytes))
	if len(m.Bytes) > 128 {
		t.Errorf("a tombstone takes %d bytes", len(m.Bytes))
	}
	if m = mask(t, k, strictTombstone(t, k)); len(m.Bytes) > 340 {
		t.Errorf("a tombstone with all that lasts takes %d bytes", len(m.Bytes))
	}
}

// What Mask accepts, Unmask opens; the rest is refused before it is written.
func TestMaskRefuses(t *testing.T) {
	k := testKeyring(t, 1)
	for name, change := range map[string]func(*Record){
		"kind 0":                          func(r *Record) { r.Kind = 0 },
		"kind 6":                          func(r *Record) { r.Kind = 6 },
		"reference 0":                     func(r *Record) { r.Ref = 0 },
		"a reference of 64 bits":          func(r *Record) { r.Ref = 1 << 63 },
		"a pair of 64 bits":               func(r *Record) { r.Core.Pair = 1 << 63 },
		"a key of a cluster":              func(r *Record) { r.Cluster = 1 },
		"a member of no cluster":          func(r *Record) { r.Kind = KindMember },
		"a negative size":                 func(r *Record) { r.Core.Size = -1 },
		"a size beyond 31 bits":           func(r *Record) { r.Core.Size = 1 << 31 },
		"an owner not UTF-8":              func(r *Record) { r.Core.Owner = "\xff" },
		"a register name not UTF-8":       func(r *Record) { r.Registers["\xff"] = Register{} },
		"a hidden name not UTF-8":         func(r *Record) { r.Hidden["\xff"] = Register{} },
		"a tombstone with material":       func(r *Record) { m := r.Material; r.Destroy(); r.Material = m },
		"a tombstone with registers":      func(r *Record) { r.Destroy(); r.Set("attr/label", nil, at(1)) },
		"a tombstone that is extractable": func(r *Record) { r.Destroy(); r.Set("attr/extractable", BoolValue(true), at(1)) },
		"a user's tombstone with registers": func(r *Record) {
			r.Kind = KindUser
			r.Destroy()
			r.Set("attr/sensitive", BoolValue(true), at(1))
		},
		"a tombstone with hidden": func(r *Record) { r.Destroy(); r.Hidden["x"] = Register{} },
		"a tombstone with a core": func(r *Record) { r.Destroy(); r.Core.Type = "aes" },
		"too many shares": func(r *Record) {
			for i := range 10000 {
				r.Set(ShareRegister(fmt.Sprint(i)), BoolValue(true), at(1))
			}
		},
		"too much material": func(r *Record) { r.Material = NewSecret(make([]byte, MaxMasked)) },
	} {
		r := aesRecord(t, k)
		change(r)
		_, err := k.Mask(r)
		wantErr(t, name, err, ErrInvalid)
	}
}

// The largest object goes through, one byte more does not.
func TestMaskLimit(t *testing.T) {
	k := testKeyring(t, 1)
	r := aesRecord(t, k)
	base := len(mask(t, k, r).Bytes)
	r.Set("attr/id", make([]byte, MaxMasked-base-100), at(1))
	over := len(mask(t, k, r).Bytes) - MaxMasked
	r.Set("attr/id", make([]byte, MaxMasked-base-100-over), at(1))
	m := mask(t, k, r)
	if len(m.Bytes) != MaxMasked {
		t.Fatalf("%d bytes, wanted to test with %d", len(m.Bytes), MaxMasked)
	}
	if back := result(k.Unmask(m))(t); !sameRecord(back, r) {
		t.Error("the largest object comes back as something else")
	}
	cols := result(SplitMasked(m.Bytes))(t)
	_, err := JoinMasked(Columns{Clear: append(cols.Clear, 0), Opaque: cols.Opaque})
	wantErr(t, "joining one byte more", err, ErrCorrupt)
	r.Set("attr/id", make([]byte, MaxMasked-base-100-over+1), at(1))
	_, err = k.Mask(r)
	wantErr(t, "masking one byte more", err, ErrInvalid)
	_, err = k.Unmask(MaskedObject{Bytes: make([]byte, MaxMasked+1)})
	wantErr(t, "unmasking one byte more", err, ErrCorrupt)
	_, _, err = ParseMasked(make([]byte, MaxMasked+1))
	wantErr(t, "parsing one byte more", err, ErrCorrupt)
}

// 1,024 users, the most a cluster may have, can all share one key.
func TestMaskSharedWithAll(t *testing.T) {
	k := testKeyring(t, 1)
	r := ecRecord(t, k)
	r.Material = NewSecret(make([]byte, 2400)) // RSA-4096, PKCS #8
	for i := range 1024 {
		r.Set(ShareRegister(fmt.Sprintf("%031d", i)), BoolValue(true), at(1))
	}
	m := mask(t, k, born(t, k, r))
	t.Logf("%d bytes", len(m.Bytes))
	if back := result(k.Unmask(m))(t); !sameRecord(back, r) {
		t.Error("comes back as something else")
	}
}

func TestParseMaskedShowsTheClearPart(t *testing.T) {
	k := testKeyring(t, 1)
	for name, r := range sampleRecords(t, k) {
		m := mask(t, k, r)
		got, claim, err := ParseMasked(m.Bytes)
		if err != nil || got.Object != m.Object || got.Lineage != m.Lineage {
			t.Fatalf("%s: %v, %v", name, got.Object, err)
		}
		open := r.Clone()
		open.Material, open.Hidden = Secret{}, nil
		if !sameRecord(claim, open) {
			t.Errorf("%s: claims something else", name)
		}
	}
}

// The material is nowhere in the masked object.
func TestMaskHidesTheMaterial(t *testing.T) {
	k := testKeyring(t, 1)
	for name, r := range sampleRecords(t, k) {
		m := mask(t, k, r)
		secrets := [][]byte{r.Material.Reveal()}
		for _, reg := range r.Hidden {
			secrets = append(secrets, reg.Value)
		}
		for _, s := range secrets {
			for i := 0; i+8 <= len(s); i++ {
				if bytes.Contains(m.Bytes, s[i:i+8]) {
					t.Fatalf("%s: material shows in the masked object", name)
				}
			}
		}
	}
}

func TestSplitJoin(t *testing.T) {
	k := testKeyring(t, 1)
	for name, r := range sampleRecords(t, k) {
		m := mask(t, k, r)
		cols := result(SplitMasked(m.Bytes))(t)
		if joined := result(JoinMasked(cols))(t); !bytes.Equal(joined, m.Bytes) {
			t.Errorf("%s: does not come together again", name)
		}
		for n := range cols.Opaque {
			_, err := JoinMasked(Columns{Clear: cols.Clear, Opaque: cols.Opaque[:n]})
			wantErr(t, fmt.Sprintf("%s: opaque column cut to %d", name, n), err, ErrCorrupt)
		}
	}
	_, err := SplitMasked(nil)
	wantErr(t, "splitting nothing", err, ErrCorrupt)
}

func TestFutureVersionIsNamed(t *testing.T) {
	k := testKeyring(t, 1)
	future := []byte{0x86, 0x03, 0, 0, 0, 0, 0}
	_, err := k.Unmask(claimOf(k, future))
	wantErr(t, "version 3", err, ErrCorrupt)
	if err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("%v does not name the version", err)
	}
}
