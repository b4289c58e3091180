package soft

import (
	"bytes"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// robber is alice, who may take out a key with the help of trusted keys only, and wants
// to see it.
type robber struct {
	*testing.T
	h        *HSM
	admin, s *session
	loot     hsm.KeyInfo // wrap-with-trusted
	known    []byte      // of a key that she has imported
	knownKey hsm.KeyInfo
	private  hsm.KeyRef // a pair of which the public half is trusted
	public   hsm.KeyRef
}

func newRobber(t *testing.T) *robber {
	r := &robber{T: t, h: withUser(t, open(t, testOptions(vfs.NewMem())))}
	r.admin, r.s = login(t, r.h, "admin"), login(t, r.h, "alice")
	loot := aesRequest
	loot.Attributes = map[string]string{"wrap-with-trusted": "true"}
	r.loot = createAs(t, r.s, loot)
	r.known = bytes.Repeat([]byte{7}, 32)
	r.knownKey = createAs(t, r.s, hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: "aes", Data: hsm.NewSecret(r.known)})
	return r
}

// trustPair makes a pair with these attributes of the private half and has the public
// half trusted.
func (r *robber) trustPair(private map[string]string) {
	r.Helper()
	r.pair(private, true)
	wantErr(r.T, "trust", setAttribute(r.T, r.admin, r.public, "trusted", "true"), nil)
}

func (r *robber) pair(private map[string]string, token bool) {
	r.Helper()
	op := randomOp()
	made := must[hsm.Created](r)(r.s.Create(r.Context(), op, hsm.CreateRequest{
		Method: hsm.MethodGenerate, Token: token, Type: "rsa", Size: 2048, Attributes: private, Public: map[string]string{"wrap": "true"},
	}))
	if token {
		wantErr(r.T, "commit", r.s.Commit(r.Context(), op), nil)
	}
	r.private, r.public = made.Keys[0].Ref, made.Keys[1].Ref
}

func (r *robber) trustAES(attributes map[string]string) hsm.KeyRef {
	r.Helper()
	request := aesRequest
	request.Attributes = map[string]string{"wrap": "true", "unwrap": "true", "extractable": "false"}
	for name, v := range attributes {
		request.Attributes[name] = v
	}
	k := createAs(r.T, r.s, request)
	for name := range attributes {
		wantErr(r.T, name+" off", setAttribute(r.T, r.s, k.Ref, name, "false"), nil)
	}
	return k.Ref
}

func (r *robber) wrap(key, payload hsm.KeyRef, p hsm.Params) ([]byte, error) {
	return r.s.Use(r.Context(), hsm.Use{Kind: hsm.UseWrap, Key: key, Payload: payload, Params: p})
}

// sees fails if this is what the key holds that alice must not see.
func (r *robber) sees(how string, got []byte) {
	r.Helper()
	cur := must[*held](r)(r.h.read(hsm.ScopeLineage, r.loot.Ref))
	if bytes.Contains(got, cur.rec.Material.Reveal()) {
		r.Errorf("%s: alice sees the key", how)
	}
}

// TestTrustedKeyDrawsItsIVs: two wraps under one IV are not to be had.
func TestTrustedKeyDrawsItsIVs(t *testing.T) {
	r := newRobber(t)
	kek := r.trustAES(nil)
	wantErr(t, "trust", setAttribute(t, r.admin, kek, "trusted", "true"), nil)
	gcm := hsm.Params{Mechanism: "aes-gcm", IV: make([]byte, 12)}
	loot, err := r.wrap(kek, r.loot.Ref, gcm)
	wantErr(t, "wrap under an IV of one's own", err, hsm.ErrAttribute)
	known, err := r.wrap(kek, r.knownKey.Ref, gcm)
	wantErr(t, "wrap a known key under an IV of one's own", err, hsm.ErrAttribute)
	if loot != nil && known != nil {
		stream := make([]byte, 32)
		for i := range stream {
			stream[i] = loot[i] ^ known[i] ^ r.known[i]
		}
		r.sees("one IV", stream)
	}
	_, err = r.wrap(kek, r.loot.Ref, hsm.Params{Mechanism: "aes-gcm"})
	wantErr(t, "wrap", err, nil)
}

// TestTrustedKeyIsNoCipher: who has encrypted a block of zeros with a key before it was
// trusted has the subkey of its CMAC, and so the cipher.
func TestTrustedKeyIsNoCipher(t *testing.T) {
	r := newRobber(t)
	request := aesRequest
	request.Attributes = map[string]string{"wrap": "true", "extractable": "false", "encrypt": "true"}
	kek := createAs(t, r.s, request).Ref
	ecb := hsm.Params{Mechanism: "aes-ecb"}
	zero := must[[]byte](t)(r.s.Use(t.Context(), hsm.Use{Kind: hsm.UseEncrypt, Key: kek, Data: make([]byte, 16), Params: ecb}))
	wantErr(t, "encrypt off", setAttribute(t, r.s, kek, "encrypt", "false"), nil)
	wantErr(t, "trust", setAttribute(t, r.admin, kek, "trusted", "true"), nil)
	subkey := new(big.Int).Lsh(new(big.Int).SetBytes(zero), 1)
	if subkey.BitLen() > 128 {
		subkey.SetBit(subkey, 128, 0)
		subkey.Xor(subkey, big.NewInt(0x87))
	}
	wrapped := must[[]byte](t)(r.wrap(kek, r.loot.Ref, hsm.Params{Mechanism: "aes-gcm"}))
	var plain []byte
	for i := range 2 {
		block := binary.BigEndian.AppendUint32(slices.Clone(wrapped[:12]), uint32(i+2))
		block = new(big.Int).Xor(new(big.Int).SetBytes(block), subkey).FillBytes(make([]byte, 16))
		mac, err := r.s.Use(t.Context(), hsm.Use{Kind: hsm.UseMAC, Key: kek, Data: block, Params: hsm.Params{Mechanism: "aes-cmac"}})
		wantErr(t, "mac with a trusted key", err, hsm.ErrAttribute)
		for j, b := range mac {
			plain = append(plain, b^wrapped[12+16*i+j])
		}
	}
	r.sees("CMAC", plain)
}

// TestTrustedPairDoesNotSign: a signature without padding is a decryption.
func TestTrustedPairDoesNotSign(t *testing.T) {
	r := newRobber(t)
	r.trustPair(map[string]string{"unwrap": "true", "extractable": "false"})
	wrapped := must[[]byte](t)(r.wrap(r.public, r.loot.Ref, hsm.Params{Mechanism: "rsa-oaep"}))
	wantErr(t, "sign", setAttribute(t, r.s, r.private, "sign", "true"), nil)
	_, err := r.s.Use(t.Context(), hsm.Use{Kind: hsm.UseSign, Key: r.private, Data: wrapped, Params: hsm.Params{Mechanism: "rsa-x-509"}})
	wantErr(t, "sign with the private half of a trusted key", err, hsm.ErrAttribute)

	// Set at once on two HSMs, and merged.
	cur := must[*held](t)(r.h.read(hsm.ScopeLineage, r.private))
	both := cur.rec.Clone()
	both.Set(hsm.AttributeRegister("decrypt"), hsm.BoolValue(true), r.h.clock.Next())
	insertMasked(t, r.h, must[hsm.MaskedObject](t)(r.h.keys().Mask(both)))
	plain, err := r.s.Use(t.Context(), hsm.Use{Kind: hsm.UseDecrypt, Key: r.private, Data: wrapped, Params: hsm.Params{Mechanism: "rsa-oaep"}})
	wantErr(t, "decrypt with the private half of a trusted key", err, hsm.ErrAttribute)
	r.sees("decrypt", plain)
}

// TestTrustedPairDoesNotWrapInParts: of rsa-aes nobody unwraps the first part as a key of
// its own, with which the second is open.
func TestTrustedPairDoesNotWrapInParts(t *testing.T) {
	r := newRobber(t)
	r.trustPair(map[string]string{"unwrap": "true", "extractable": "false"})
	for _, mechanism := range []string{"rsa-aes", "rsa-pkcs"} {
		wrapped, err := r.wrap(r.public, r.loot.Ref, hsm.Params{Mechanism: mechanism})
		wantErr(t, mechanism, err, hsm.ErrAttribute)
		if mechanism != "rsa-aes" || err != nil {
			continue
		}
		inner := createAs(t, r.s, hsm.CreateRequest{
			Method: hsm.MethodUnwrap, Token: true, Type: "aes", Key: r.private, Data: hsm.NewSecret(wrapped[:256]), Params: hsm.Params{Mechanism: "rsa-oaep"},
			Attributes: map[string]string{"unwrap": "true"},
		})
		out := createAs(t, r.s, hsm.CreateRequest{
			Method: hsm.MethodUnwrap, Token: true, Type: "aes", Key: inner.Ref, Data: hsm.NewSecret(wrapped[256:]), Params: hsm.Params{Mechanism: "aes-kwp"},
			Attributes: map[string]string{"sensitive": "false"},
		})
		r.sees(mechanism, must[[]byte](t)(r.s.Use(t.Context(), hsm.Use{Kind: hsm.UseValue, Key: out.Ref})))
	}
	p := hsm.Params{Mechanism: "rsa-aes"}
	wrapped := must[[]byte](t)(r.wrap(r.public, r.knownKey.Ref, p)) // which she may see anyhow
	createAs(t, r.s, hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: true, Type: "aes", Key: r.private, Data: hsm.NewSecret(wrapped), Params: p})
	p.Mechanism = "rsa-pkcs"
	wrapped = must[[]byte](t)(r.wrap(r.public, r.knownKey.Ref, p))
	_, err := r.s.Create(t.Context(), randomOp(), hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: true, Type: "aes", Key: r.private, Data: hsm.NewSecret(wrapped), Params: p})
	wantErr(t, "unwrap with rsa-pkcs", err, hsm.ErrAttribute)
}

// TestHalfOfADestroyedPairStaysTrusted: when both halves are destroyed in spite of trust
// (where that is not known, or by an abort), the private one does not come back to decrypt.
func TestHalfOfADestroyedPairStaysTrusted(t *testing.T) {
	r := newRobber(t)
	op := randomOp()
	made := must[hsm.Created](t)(r.s.Create(t.Context(), op, hsm.CreateRequest{
		Method: hsm.MethodGenerate, Token: true, Type: "rsa", Size: 2048, Public: map[string]string{"wrap": "true"},
		Attributes: map[string]string{"unwrap": "true", "extractable": "false", "decrypt": "true"},
	}))
	wantErr(t, "commit", r.s.Commit(t.Context(), op), nil)
	r.private, r.public = made.Keys[0].Ref, made.Keys[1].Ref
	decrypts := extractOne(t, r.s, r.private)
	wantErr(t, "decrypt off", setAttribute(t, r.s, r.private, "decrypt", "false"), nil)
	fit := extractOne(t, r.s, r.private)
	wantErr(t, "trust", setAttribute(t, r.admin, r.public, "trusted", "true"), nil)
	oaep := hsm.Params{Mechanism: "rsa-oaep"}
	wrapped := must[[]byte](t)(r.wrap(r.public, r.loot.Ref, oaep))
	wantErr(t, "abort", r.s.Abort(t.Context(), op), nil)
	for _, old := range []hsm.MaskedObject{decrypts, fit} {
		_, err := r.s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeRevive, Ref: r.private, Masked: &old})
		if err != nil {
			wantErr(t, "revive the private half", err, hsm.ErrAttribute)
			continue
		}
		if err = setAttribute(t, r.s, r.private, "decrypt", "true"); err != nil {
			wantErr(t, "decrypt on", err, hsm.ErrAttribute)
		}
		plain, err := r.s.Use(t.Context(), hsm.Use{Kind: hsm.UseDecrypt, Key: r.private, Data: wrapped, Params: oaep})
		wantErr(t, "decrypt", err, hsm.ErrAttribute)
		r.sees("abort and revive", plain)
		unwrap := hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: true, Type: "aes", Key: r.private, Data: hsm.NewSecret(wrapped), Params: oaep}
		if got := createAs(t, r.s, unwrap).Attributes["wrap-with-trusted"]; got != "true" {
			t.Errorf("it unwraps with wrap-with-trusted %s", got)
		}
		apply(t, r.s, hsm.Change{Kind: hsm.ChangeDestroy, Ref: r.private})
	}
}

// TestTrustNeedsBothHalves: the private half of a pair may be a session key of whoever
// made it, which nobody else sees.
func TestTrustNeedsBothHalves(t *testing.T) {
	r := newRobber(t)
	r.pair(map[string]string{"decrypt": "true"}, false)
	op := randomOp()
	must[hsm.Created](t)(r.s.Create(t.Context(), op, hsm.CreateRequest{Method: hsm.MethodPromote, Token: true, Key: r.public}))
	wantErr(t, "commit", r.s.Commit(t.Context(), op), nil)
	err := setAttribute(t, r.admin, r.public, "trusted", "true")
	wantErr(t, "trust half of a pair", err, hsm.ErrAttribute)
	if err == nil {
		oaep := hsm.Params{Mechanism: "rsa-oaep"}
		wrapped := must[[]byte](t)(r.wrap(r.public, r.loot.Ref, oaep))
		r.sees("session key", must[[]byte](t)(r.s.Use(t.Context(), hsm.Use{Kind: hsm.UseDecrypt, Key: r.private, Data: wrapped, Params: oaep})))
	}
}

// TestASignatureOpensOneKey: to see whether its other half is trusted takes no other key
// from those that are kept open.
func TestASignatureOpensOneKey(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	alice := login(t, h, "alice")
	op := randomOp()
	made := must[hsm.Created](t)(alice.Create(t.Context(), op, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "rsa", Size: 2048, Attributes: map[string]string{"sign": "true"}}))
	if err := alice.Commit(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	h.cache = newKeyCache(cachedKeys)
	for _, k := range made.Keys {
		if k.Class == hsm.ClassPrivate {
			must[[]byte](t)(alice.Use(t.Context(), hsm.Use{Kind: hsm.UseSign, Key: k.Ref, Data: []byte("data"), Params: hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256"}}))
		}
	}
	if n := h.cache.order.Len(); n != 1 {
		t.Errorf("%d keys are kept open, want 1", n)
	}
}
