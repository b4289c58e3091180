// Package keytest uses one key on two clusters that should both hold it, and
// holds the answers against each other: signatures are verified, ciphertexts
// decrypted, and what is the same every time compared, on the other side.
package keytest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// Question is what every key is asked.
var Question = []byte("hsmbackup drill: what does this key make of these words?")

// ErrAnswer: the key of the other side makes something else of the question.
var ErrAnswer = errors.New("another answer than the other side's")

// Test makes an answer on side one and checks side two's key against it. Where
// the answer of a key is the same every time, side two must give the same;
// otherwise side two must undo what side one did, or each must accept what the
// other does.
type Test struct {
	Ask   func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error)
	Check func(ctx context.Context, one, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error
}

// For picks the test of a key by what it is and may do; ok is false for a key
// that its attributes allow nothing known here.
func For(k hsm.KeyInfo) (t Test, ok bool) {
	can := func(name string) bool { return k.Attributes[name] == "true" }
	switch {
	case !k.Class.IsKey():
		return same(hsm.Use{Kind: hsm.UseValue}), true
	case k.Class == hsm.ClassPublic:
		return same(hsm.Use{Kind: hsm.UsePublic}), true
	case k.Type == "aes" && can("encrypt") && can("decrypt"):
		return roundTrip("aes-gcm"), true
	case k.Type == "des3" && can("decrypt"): // which it does in FIPS mode too
		return same(hsm.Use{Kind: hsm.UseDecrypt, Params: hsm.Params{Mechanism: "des3-ecb"}, Data: Question[:8]}), true
	case k.Type == "aes" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseMAC, Params: hsm.Params{Mechanism: "aes-cmac"}}), true
	case k.Type == "generic-secret" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseMAC, Params: hsm.Params{Mechanism: "hmac", Hash: "sha256"}}), true
	case k.Type == "rsa" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseSign, Params: hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256"}}), true
	case k.Type == "ed25519" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseSign, Params: hsm.Params{Mechanism: "ed25519"}}), true
	case k.Type == "ml-dsa" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseSign, Params: hsm.Params{Mechanism: "ml-dsa-deterministic"}}), true
	case k.Type == "ml-kem" && can("derive") && len(k.Shares) == 0: // only owners derive
		return agreed(), true
	case k.Type == "ec" && can("sign"):
		return signed("ecdsa"), true
	}
	return Test{}, false
}

func use(ctx context.Context, c *cluster.Cluster, k hsm.KeyRef, u hsm.Use) ([]byte, error) {
	u.Key = k
	if u.Data == nil {
		u.Data = Question
	}
	return c.Use(ctx, u)
}

// same is for keys whose answer does not vary.
func same(u hsm.Use) Test {
	return Test{
		Ask: func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error) {
			return use(ctx, one, k.Ref, u)
		},
		Check: func(ctx context.Context, _, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
			got, err := use(ctx, two, k.Ref, u)
			if err == nil && !bytes.Equal(got, given) {
				err = ErrAnswer
			}
			return err
		},
	}
}

// roundTrip is for keys that decrypt what they encrypted.
func roundTrip(mechanism string) Test {
	params := hsm.Params{Mechanism: mechanism}
	return Test{
		Ask: func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error) {
			return use(ctx, one, k.Ref, hsm.Use{Kind: hsm.UseEncrypt, Params: params})
		},
		Check: func(ctx context.Context, _, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
			got, err := use(ctx, two, k.Ref, hsm.Use{Kind: hsm.UseDecrypt, Params: params, Data: given})
			if err == nil && !bytes.Equal(got, Question) {
				err = ErrAnswer
			}
			return err
		},
	}
}

// verify verifies with the other half of the key on one side; a key that was
// imported alone gives its public half out, and it is verified here.
func verify(ctx context.Context, c *cluster.Cluster, k hsm.KeyInfo, params hsm.Params, signature []byte) error {
	if k.Pair != 0 {
		_, err := use(ctx, c, k.Pair, hsm.Use{Kind: hsm.UseVerify, Params: params, Signature: signature})
		return err
	}
	spki, err := use(ctx, c, k.Ref, hsm.Use{Kind: hsm.UsePublic})
	if err != nil {
		return err
	}
	public, err := mech.ParsePublic(spki)
	if err != nil {
		return err
	}
	return public.Verify(mech.SignParams{Mechanism: params.Mechanism, Hash: params.Hash}, Question, signature)
}

// signed is for keys whose signatures vary: side two signs and side one
// verifies, and the other way round.
func signed(mechanism string) Test {
	params := hsm.Params{Mechanism: mechanism, Hash: "sha256"}
	return Test{
		Ask: func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error) {
			return use(ctx, one, k.Ref, hsm.Use{Kind: hsm.UseSign, Params: params})
		},
		Check: func(ctx context.Context, one, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
			signature, err := use(ctx, two, k.Ref, hsm.Use{Kind: hsm.UseSign, Params: params})
			if err != nil {
				return err
			}
			if err := verify(ctx, one, k, params, signature); err != nil {
				return fmt.Errorf("the other side does not accept its signature: %w", err)
			}
			if err := verify(ctx, two, k, params, given); err != nil {
				return fmt.Errorf("it does not accept the other side's signature: %w", err)
			}
			return nil
		},
	}
}

// agreed is for ml-kem keys: a secret is encapsulated here for the key, and the key of
// each side must get it out again, as a MAC made with it shows.
func agreed() Test {
	return Test{
		Ask: func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error) {
			spki, err := use(ctx, one, k.Ref, hsm.Use{Kind: hsm.UsePublic})
			if err != nil {
				return nil, err
			}
			public, err := mech.ParsePublic(spki)
			if err != nil {
				return nil, err
			}
			shared, ciphertext, err := public.Encapsulate()
			if err != nil {
				return nil, err
			}
			defer clear(shared)
			want := hmac.New(sha256.New, shared)
			want.Write(Question)
			given := want.Sum(bytes.Clone(ciphertext))
			return given, decapsulated(ctx, one, k, given)
		},
		Check: func(ctx context.Context, _, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
			return decapsulated(ctx, two, k, given)
		},
	}
}

// decapsulated has a session key derived from the ciphertext that given begins with, and
// holds its MAC against the one that given ends with. The session key is destroyed; if
// that fails it ends with the session.
func decapsulated(ctx context.Context, c *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
	n := len(given) - sha256.Size
	if n < 0 {
		return ErrAnswer
	}
	made, err := c.Create(ctx, hsm.CreateRequest{
		Method: hsm.MethodDerive, Type: "generic-secret", Size: mlkem.SharedKeySize, Key: k.Ref,
		Params: hsm.Params{Mechanism: "ml-kem", Peer: given[:n]}, Attributes: map[string]string{"sign": "true"},
	}, cluster.Policy{})
	if err != nil {
		return err
	}
	ref := made.Keys[0].Ref
	mac, err := use(ctx, c, ref, hsm.Use{Kind: hsm.UseMAC, Params: hsm.Params{Mechanism: "hmac", Hash: "sha256"}})
	if err == nil && !bytes.Equal(mac, given[n:]) {
		err = ErrAnswer
	}
	_, gone := c.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	return errors.Join(err, gone)
}
