package hsm

import (
	"bytes"
	"testing"
)

func generateVectors(t testing.TB) map[string]vector {
	out := map[string]vector{}
	goodVectors(t, out)
	envelopeVectors(t, out)
	clearVectors(t, out)
	sealedVectors(t, out)
	headerVectors(t, out)
	rivalVectors(t, out)
	return out
}

func goodVectors(t testing.TB, out map[string]vector) {
	k := testKeyring(t, 1)
	add := func(name, comment string, k *Keyring, m MaskedObject) {
		env := result(openEnvelope(m.Bytes))(t)
		r := result(k.Unmask(m))(t)
		out["ok_"+name] = vector{comment: comment, expect: "ok", keyring: k, epochs: []uint64{env.epoch}, masked: m, fields: recordFields(r)}
	}
	both := testKeyring(t, 1, 2)
	revived := aesRecord(t, k)
	revived.Incarnation = 1
	lengths := born(t, k, &Record{Kind: KindPolicy, Ref: 1})
	for _, n := range []int{0, 1, 23, 24, 255, 256} {
		lengths.Set(string(bytes.Repeat([]byte{'n'}, n)), make([]byte, n), Stamp{Time: 1<<(n%64) - 1, HSM: 1 << (n % 64)})
	}
	utf8Name := aesRecord(t, k)
	utf8Name.Core.Owner = "zoë"
	utf8Name.Set("ключ", []byte("鍵"), at(5))
	add("aes", "the worked example of FORMAT.md", k, mask(t, k, aesRecord(t, k)))
	add("ec", "every field of a core, every attribute", k, mask(t, k, ecRecord(t, k)))
	add("user", "a sealed register, no material", k, mask(t, k, userRecord(t, k)))
	add("policy_minimal", "nothing but what must be", k, mask(t, k, born(t, k, &Record{Kind: KindPolicy, Ref: 1<<63 - 1})))
	add("policy_settings", "the settings before there was min-zones", k, mask(t, k, settingsRecord(t, k)))
	withZones := settingsRecord(t, k)
	withZones.Set("min-zones", []byte("2"), at(9))
	add("policy_min_zones", "the same settings with min-zones", k, mask(t, k, withZones))
	guarded := aesRecord(t, k)
	guarded.Set("attr/wrap-template", []byte(`encrypt=true,label=a\,b`), at(9))
	guarded.Set("attr/unwrap-template", []byte("extractable=false"), at(9))
	guarded.Set("attr/use-key-quorum-value", []byte("2"), at(9))
	guarded.Set("attr/manage-key-quorum-value", []byte("1"), at(9))
	add("key_templates", "templates and quorum values", k, mask(t, k, born(t, k, guarded)))
	signer := userRecord(t, k)
	signer.Set("quorum-key", []byte("SPKI"), at(9))
	signer.Set("mfa-key", nil, at(9))
	add("user_signer", "a key for approvals, and one that was taken away", k, mask(t, k, signer))
	quorum := born(t, k, &Record{Kind: KindPolicy, Ref: PolicyRef("quorum"), Core: Core{Owner: "quorum"}})
	quorum.Set("user", []byte("2"), at(9))
	add("policy_quorum", "a quorum value", k, mask(t, k, quorum))
	add("member", "an object of one cluster", k, mask(t, k, memberRecord(t, k)))
	add("lockout", "an object of one cluster", k, mask(t, k, born(t, k, &Record{Kind: KindLockout, Ref: 5, Cluster: 1<<64 - 1})))
	add("tombstone", "no sealed part, no epoch, the owner alone", k, mask(t, k, tombstone(t, k)))
	add("tombstone_lasting", "what no later life may forget", k, mask(t, k, strictTombstone(t, k)))
	add("revived", "incarnation 1", k, mask(t, k, revived))
	add("lengths", "heads of every width", k, mask(t, k, lengths))
	add("utf8", "names beyond ASCII", k, mask(t, k, born(t, k, utf8Name)))
	add("epoch_1_of_2", "sealed under the older of two masking keys", both, mask(t, k, aesRecord(t, k)))
	add("epoch_2", "the state of ok_aes under another masking key: same digest", both, mask(t, both, aesRecord(t, k)))
}

// settingsRecord is the settings object of a cluster.
func settingsRecord(t testing.TB, k *Keyring) *Record {
	r := born(t, k, &Record{Kind: KindPolicy, Ref: PolicyRef("settings"), Core: Core{Owner: "settings"}})
	for name, v := range map[string]string{"min-copies": "2", "custodians": "age1one\nage1two", "threshold": "1"} {
		r.Set(name, []byte(v), at(8))
	}
	r.Set("check-on-use", BoolValue(true), at(8))
	return r
}

// refuse adds a vector that must be refused; its header is what the bytes
// claim, as far as they decode. mended is the same without the fault.
func refuse(t testing.TB, out map[string]vector, name, comment string, b, mended []byte) {
	t.Helper()
	k := testKeyring(t, 1, 2)
	out[name] = vector{comment: comment, expect: "corrupt", keyring: k, epochs: []uint64{0}, masked: claimOf(k, b), mended: mended}
}

func envelopeVectors(t testing.TB, out map[string]vector) {
	k := testKeyring(t, 1)
	good := mask(t, k, aesRecord(t, k)).Bytes
	env := result(openEnvelope(good))(t)
	edit := func(name, comment string, change func([]byte) []byte) {
		refuse(t, out, "envelope_"+name, comment, change(bytes.Clone(good)), good)
	}
	flip := func(i int) func([]byte) []byte {
		return func(b []byte) []byte { b[i] ^= 1; return b }
	}
	edit("empty", "no bytes", func([]byte) []byte { return nil })
	edit("truncated", "the last byte is missing", func(b []byte) []byte { return b[:len(b)-1] })
	edit("trailing", "a byte follows the array", func(b []byte) []byte { return append(b, 0) })
	edit("version_0", "a version that never was", func(b []byte) []byte { b[1] = 0; return b })
	edit("version_2", "a version not known here", func(b []byte) []byte { b[1] = 2; return b })
	edit("version_3", "a version not known here", func(b []byte) []byte { b[1] = 3; return b })
	edit("four_parts", "an array of four", func(b []byte) []byte { b[0] = 0x84; return b })
	edit("map", "a map instead of an array", func(b []byte) []byte { b[0] = 0xa5; return b })
	edit("epoch_unknown", "a masking key not here", func(b []byte) []byte { b[2] = 3; return b })
	edit("epoch_other", "another masking key than the one that sealed", func(b []byte) []byte { b[2] = 2; return b })
	edit("epoch_0", "a live object without an epoch", func(b []byte) []byte { b[2] = 0; return b })
	edit("siv_bit", "a bit of the synthetic IV is flipped", flip(5))
	edit("siv_bit_beyond_digest", "a bit of the synthetic IV's second half is flipped", flip(5+31))
	edit("sealed_bit", "a bit of the ciphertext is flipped", flip(len(good)-20))
	edit("tag_bit", "a bit of the GCM tag is flipped", flip(len(good)-1))
	edit("clear_bit", "a bit of a register's value in clear is flipped", func(b []byte) []byte { b[bytes.Index(b, []byte("payments"))] ^= 1; return b })
	edit("long_head", "the version is encoded in two bytes", func(b []byte) []byte { return append([]byte{b[0], 0x18, 1}, b[2:]...) })
	edit("siv_short", "a synthetic IV of 31 bytes", func([]byte) []byte {
		return (&envelope{version: versionPlain, epoch: 1, siv: env.siv[:31], clear: env.clear, sealed: env.sealed}).append(nil)
	})
	edit("siv_indefinite", "a byte string of indefinite length", func(b []byte) []byte {
		rest := append([]byte{0x5f}, b[3:3+34]...)
		return append(append(b[:3:3], append(rest, 0xff)...), b[3+34:]...)
	})
	edit("sealed_empty", "a live object without a sealed part", func([]byte) []byte {
		return (&envelope{version: versionPlain, epoch: 1, siv: env.siv, clear: env.clear}).append(nil)
	})
	dead := mask(t, k, tombstone(t, k)).Bytes
	tomb := result(openEnvelope(dead))(t)
	refuse(t, out, "tombstone_epoch", "a tombstone with an epoch", (&envelope{version: versionPlain, epoch: 1, siv: tomb.siv, clear: tomb.clear}).append(nil), dead)
	refuse(t, out, "tombstone_sealed", "a tombstone with a sealed part", authentic(t, k, tomb.clear, []byte{0xa0}, 1), dead)
}

// authentic seals any two parts as an HSM of the lineage would.
func authentic(t testing.TB, k *Keyring, clearBytes, hidden []byte, epoch uint64) []byte {
	t.Helper()
	env := &envelope{version: versionPlain, epoch: epoch, siv: k.siv(clearBytes, hidden), clear: clearBytes}
	return result(k.seal(env, hidden))(t)
}

// clearVectors hold clear parts that no HSM writes, authenticated all the same.
func clearVectors(t testing.TB, out map[string]vector) {
	k := testKeyring(t, 1)
	lineage, birth := k.Lineage(), bytes.Repeat([]byte{0xbb}, 16)
	head := func(kind byte, n byte) []byte { // fields 1 to 3
		b := append([]byte{cborMap | n, 1, kind, 2, 0x18, 0x2a, 3}, appendBytes(nil, lineage[:])...)
		return b
	}
	withBirth := func(b []byte) []byte { return appendBytes(append(b, 5), birth) }
	plain := func(n byte, tail ...byte) []byte { return append(withBirth(head(1, n)), tail...) }
	if _, err := decodeClear(plain(5, 8, 0xa0)); err != nil {
		t.Fatal("the base of these vectors is not well: ", err)
	}
	base := plain(5, 8, 0xa0)
	add := func(name, comment string, clearBytes, mended []byte) {
		refuse(t, out, "clear_"+name, comment, authentic(t, k, clearBytes, []byte{0xa0}, 1), authentic(t, k, mended, []byte{0xa0}, 1))
	}
	register := func(name string) []byte { return append(appendText(nil, name), 0x83, 1, 1, 0x40) }
	registers := func(names ...string) []byte {
		b := []byte{8, 0xa0, 9, cborMap | byte(len(names))}
		for _, name := range names {
			b = append(b, register(name)...)
		}
		return plain(6, b...)
	}
	kind := func(head ...byte) []byte {
		b := append(append([]byte{cborMap | 5, 1}, head...), 2, 0x18, 0x2a, 3)
		return append(withBirth(append(b, appendBytes(nil, lineage[:])...)), 8, 0xa0)
	}
	reference := func(head ...byte) []byte {
		b := append(append([]byte{cborMap | 5, 1, 1, 2}, head...), 3)
		return append(withBirth(append(b, appendBytes(nil, lineage[:])...)), 8, 0xa0)
	}
	add("no_core", "a field that must be there is not", plain(4), base)
	add("trailing", "a byte follows the map", plain(5, 8, 0xa0, 0), base)
	add("unknown_key", "a field of a later version", plain(6, 8, 0xa0, 10, 1), base)
	add("unknown_key_12", "a field of a later version", plain(6, 8, 0xa0, 12, 1), base)
	add("duplicate_key", "a field twice", plain(6, 8, 0xa0, 8, 0xa0), base)
	add("unsorted_keys", "fields out of order", plain(6, 8, 0xa0, 6, 1), plain(6, 6, 1, 8, 0xa0))
	add("zero_written", "an incarnation of zero is left out, not written", plain(6, 6, 0, 8, 0xa0), base)
	add("false_written", "false is left out, not written", plain(6, 7, 0xf4, 8, 0xa0), base)
	add("long_key", "a key encoded in two bytes", plain(5, 0x18, 8, 0xa0), base)
	long := append(append([]byte{cborMap | 5, 1, 1, 2, 0x19, 0, 0x2a, 3}, appendBytes(nil, lineage[:])...), withBirth(nil)...)
	add("long_reference", "a reference encoded in more bytes than it needs", long, base)
	add("reference_not_shortest", "a reference encoded in more bytes than it needs", reference(0x19, 0, 0x2a), base)
	add("float_kind", "a kind encoded as a float", kind(0xf9, 0x3c, 0), base)
	add("tagged_core", "a tag", plain(5, 8, 0xc0, 0xa0), base)
	add("null_core", "null", plain(5, 8, 0xf6), base)
	add("empty_text", "an empty class is left out, not written", plain(5, 8, 0xa1, 1, 0x60), base)
	add("empty_bytes", "an empty public key is left out, not written", plain(5, 8, 0xa1, 8, 0x40), base)
	add("bad_utf8", "an owner that is not UTF-8", plain(5, 8, 0xa1, 7, 0x61, 0xff), plain(5, 8, 0xa1, 7, 0x61, 'a'))
	add("created_zero", "a creation stamp of zero is left out, not written", plain(5, 8, 0xa1, 6, 0x82, 0, 0), plain(5, 8, 0xa1, 6, 0x82, 1, 0))
	add("core_unknown_key", "a field of a later version in the core", plain(5, 8, 0xa1, 13, 1), base)
	add("size_32_bits", "a size beyond 31 bits", plain(5, 8, 0xa1, 3, 0x1a, 0x80, 0, 0, 0), plain(5, 8, 0xa1, 3, 0x1a, 0x7f, 0xff, 0xff, 0xff))
	add("registers_empty", "an empty map of registers is left out, not written", registers(), base)
	add("registers_unsorted", "registers out of order", registers("b", "a"), registers("a", "b"))
	add("registers_bytewise", "registers in bytewise order of their names, not of their encodings", registers("aa", "b"), registers("b", "aa"))
	add("registers_twice", "a register twice", registers("a", "a"), registers("a", "b"))
	add("registers_count", "a map that promises more than there is", plain(6, append([]byte{8, 0xa0, 9, 0xbb, 255, 255, 255, 255, 255, 255, 255, 255}, register("a")...)...), registers("a"))
	add("register_pair", "a register of two parts", plain(6, 8, 0xa0, 9, 0xa1, 0x61, 'a', 0x82, 1, 1), registers("a"))
	add("kind_0", "a kind that does not exist", kind(0), base)
	add("kind_6", "a kind that does not exist", kind(6), base)
	add("kind_8", "a kind that does not exist", kind(8), base)
	add("kind_257", "a kind beyond eight bits", kind(0x19, 1, 1), base)
	add("reference_64_bits", "a reference of 64 bits", reference(0x1b, 0x80, 0, 0, 0, 0, 0, 0, 0), base)
	add("birth_15_bytes", "a birth of 15 bytes", append(appendBytes(append(head(1, 5), 5), birth[:15]), 8, 0xa0), base)
	add("cluster_of_key", "a key of one cluster", append(withBirth(append(head(1, 6), 4, 1)), 8, 0xa0), base)
	add("cluster_missing", "a member of no cluster", append(withBirth(head(4, 5)), 8, 0xa0), append(withBirth(append(head(4, 6), 4, 1)), 8, 0xa0))
	bury := func(name, comment string, clearBytes, mended []byte) {
		refuse(t, out, "tombstone_"+name, comment, authentic(t, k, clearBytes, nil, 0), authentic(t, k, mended, nil, 0))
	}
	dead := plain(6, 7, 0xf5, 8, 0xa0)
	denied := append(appendText(nil, "attr/extractable"), 0x83, 1, 1, 0x41)
	bury("core", "a tombstone that still has a class", plain(6, append([]byte{7, 0xf5, 8, 0xa1, 1}, appendText(nil, "secret-key")...)...), dead)
	bury("register", "a tombstone that still has a register", plain(7, append([]byte{7, 0xf5, 8, 0xa0, 9, 0xa1}, register("a")...)...), dead)
	bury("extractable", "a tombstone that says again what it may not", plain(7, append(append([]byte{7, 0xf5, 8, 0xa0, 9, 0xa1}, denied...), 1)...), plain(7, append(append([]byte{7, 0xf5, 8, 0xa0, 9, 0xa1}, denied...), 0)...))
}

// sealedVectors hold sealed parts that no HSM writes, authenticated all the
// same.
func sealedVectors(t testing.TB, out map[string]vector) {
	k := testKeyring(t, 1)
	clearBytes := k.encodeClear(aesRecord(t, k))
	add := func(name, comment string, hidden, mended []byte) {
		refuse(t, out, "sealed_"+name, comment, authentic(t, k, clearBytes, hidden, 1), authentic(t, k, clearBytes, mended, 1))
	}
	none := []byte{0xa0}
	add("trailing", "a byte follows the map", []byte{0xa0, 0}, none)
	add("unknown_key", "a field of a later version", []byte{0xa1, 3, 1}, none)
	add("empty_material", "empty material is left out, not written", []byte{0xa1, 1, 0x40}, none)
	add("empty_registers", "an empty map of registers is left out, not written", []byte{0xa1, 2, 0xa0}, none)
	add("unsorted", "fields out of order", []byte{0xa2, 2, 0xa1, 0x61, 'a', 0x83, 1, 1, 0x40, 1, 0x41, 1}, []byte{0xa2, 1, 0x41, 1, 2, 0xa1, 0x61, 'a', 0x83, 1, 1, 0x40})
	add("array", "an array instead of a map", []byte{0x80}, none)
	add("long_length", "a length encoded in two bytes", []byte{0xa1, 1, 0x58, 1, 7}, []byte{0xa1, 1, 0x41, 7})
}

func headerVectors(t testing.TB, out map[string]vector) {
	k := testKeyring(t, 1, 2)
	add := func(name, comment, expect string, change func(*MaskedObject)) {
		m := mask(t, k, aesRecord(t, k))
		mended := m.Bytes
		change(&m)
		out["header_"+name] = vector{comment: comment, expect: expect, keyring: k, epochs: []uint64{2}, masked: m, mended: mended}
	}
	other := result(OpenKeyring(NewSecret(sequence(0x60, KeySize)), map[uint64]Secret{2: NewSecret(sequence(0x40, KeySize))}))(t)
	add("reference", "another reference than in the bytes", "corrupt", func(m *MaskedObject) { m.Ref++ })
	add("kind", "another kind than in the bytes", "corrupt", func(m *MaskedObject) { m.Kind = KindPolicy })
	add("tombstone", "said to be a tombstone", "corrupt", func(m *MaskedObject) { m.Tombstone = true })
	add("digest", "another digest than in the bytes", "corrupt", func(m *MaskedObject) { m.Digest[0] ^= 1 })
	add("lineage", "said to be another lineage's", "lineage", func(m *MaskedObject) { m.Lineage = other.Lineage() })
	m := mask(t, other, aesRecord(t, other))
	out["lineage_other"] = vector{comment: "another lineage with the same masking key", expect: "lineage", keyring: k, epochs: []uint64{2}, masked: m}
	m.Lineage = k.Lineage()
	out["lineage_other_bytes"] = vector{comment: "another lineage's bytes under this lineage's header", expect: "lineage", keyring: k, epochs: []uint64{2}, masked: m}
}

// decided is the worked example's key above another birth of its reference.
func decided(t testing.TB, k *Keyring) *Record {
	t.Helper()
	return result(Supersede(aesRecord(t, k), otherBirth(t, k), aesRecord(t, k).Birth))(t)
}

// otherBirth is another key under the reference of the worked example.
func otherBirth(t testing.TB, k *Keyring) *Record {
	t.Helper()
	r := aesRecord(t, k)
	r.Core.Owner, r.Core.Created, r.Material = "bob", at(7), NewSecret(sequence(0x30, 32))
	r.Set(AttributeRegister("label"), []byte("another"), at(8))
	return born(t, k, r)
}

func rivalVectors(t testing.TB, out map[string]vector) {
	k := testKeyring(t, 1)
	add := func(name, comment string, r *Record) {
		m := mask(t, k, r)
		env := result(openEnvelope(m.Bytes))(t)
		out["ok_"+name] = vector{comment: comment, expect: "ok", keyring: k, epochs: []uint64{env.epoch}, masked: m, fields: recordFields(result(k.Unmask(m))(t))}
	}
	add("rival", "a key that stands above another birth", decided(t, k))
	dead := decided(t, k)
	dead.Destroy()
	add("rival_tombstone", "the same key destroyed: its rival stays", dead)
	over := otherBirth(t, k)
	over.Destroy()
	add("rival_destroyed", "a key that stands above a tombstone", result(Supersede(aesRecord(t, k), over, aesRecord(t, k).Birth))(t))

	seal := func(r *Record) []byte {
		env := &envelope{version: versionRivals, epoch: 1, clear: k.encodeClear(r)}
		hidden := encodeHidden(r)
		env.siv = k.siv(env.clear, hidden)
		return result(k.seal(env, hidden))(t)
	}
	from := func(name, comment string, change, mended func(*Record)) {
		r, m := decided(t, k), decided(t, k)
		change(r)
		mended(m)
		refuse(t, out, "rival_"+name, comment, seal(r), seal(m))
	}
	bad := func(name, comment string, change func(*Record)) { from(name, comment, change, func(*Record) {}) }
	bad("none", "version 2 without a rival", func(r *Record) { r.Rivals, r.Standing = nil, 0 })
	bad("no_standing", "a rival, and no standing", func(r *Record) { r.Standing = 0 })
	bad("no_rivals", "a standing above nobody", func(r *Record) { r.Rivals = nil })
	from("itself", "it is its own rival", func(r *Record) { r.Rivals[r.Birth] = &Rival{Standing: r.Standing} }, func(r *Record) {
		third := r.Birth
		third[15]-- // of two that stand alike, the lower birth is below
		r.Rivals[third] = &Rival{Standing: r.Standing}
	})
	bad("above", "a rival of a higher standing", func(r *Record) { r.Rivals[otherBirth(t, k).Birth].Standing = 2 })
	bad("standing_large", "a standing beyond 2^32", func(r *Record) { r.Standing = MaxStanding + 1 })
	bad("of_policy", "a policy with a rival", func(r *Record) { r.Kind = KindPolicy })
	bad("not_erased", "a destroyed rival that still has a label", func(r *Record) { r.Rivals[otherBirth(t, k).Birth].Destroyed = true })
	m := mask(t, k, decided(t, k))
	old := bytes.Clone(m.Bytes)
	old[1] = versionPlain
	refuse(t, out, "rival_version_1", "version 1 with a rival", old, m.Bytes)
}
