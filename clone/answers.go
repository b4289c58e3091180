package clone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// question is what every key is asked.
var question = []byte("hsmbackup drill: what does this key make of these words?")

// answer is what a key of region one made of the question, and how region two's
// copy has to stand by it.
type answer struct {
	key   hsm.KeyInfo
	user  string
	given []byte
	how   test
}

// test makes an answer in region one and checks region two's key against it.
// Where the answer of a key is the same every time, region two must give the
// same; otherwise region two must undo what region one did, or region one must
// accept what region two does.
type test struct {
	ask   func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error)
	check func(ctx context.Context, one, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error
}

var errAnswer = errors.New("another answer than region one's")

// testFor picks the test of a key by what it is and may do; ok is false for a
// key that its attributes allow nothing the drill knows.
func testFor(k hsm.KeyInfo) (test, bool) {
	can := func(name string) bool { return k.Attributes[name] == "true" }
	switch {
	case k.Class == hsm.ClassPublic:
		return same(hsm.Use{Kind: hsm.UsePublic}), true
	case k.Type == "aes" && can("encrypt") && can("decrypt"):
		return roundTrip("aes-gcm"), true
	case k.Type == "aes" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseMAC, Params: hsm.Params{Mechanism: "aes-cmac"}}), true
	case k.Type == "generic-secret" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseMAC, Params: hsm.Params{Mechanism: "hmac", Hash: "sha256"}}), true
	case k.Type == "rsa" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseSign, Params: hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256"}}), true
	case k.Type == "ed25519" && can("sign"):
		return same(hsm.Use{Kind: hsm.UseSign, Params: hsm.Params{Mechanism: "ed25519"}}), true
	case k.Type == "ec" && can("sign"):
		return signed("ecdsa"), true
	}
	return test{}, false
}

func use(ctx context.Context, c *cluster.Cluster, k hsm.KeyRef, u hsm.Use) ([]byte, error) {
	u.Key = k
	if u.Data == nil {
		u.Data = question
	}
	return c.Use(ctx, u)
}

// same is for keys whose answer does not vary.
func same(u hsm.Use) test {
	return test{
		ask: func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error) {
			return use(ctx, one, k.Ref, u)
		},
		check: func(ctx context.Context, _, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
			got, err := use(ctx, two, k.Ref, u)
			if err == nil && !bytes.Equal(got, given) {
				err = errAnswer
			}
			return err
		},
	}
}

// roundTrip is for keys that decrypt what they encrypted.
func roundTrip(mechanism string) test {
	params := hsm.Params{Mechanism: mechanism}
	return test{
		ask: func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error) {
			return use(ctx, one, k.Ref, hsm.Use{Kind: hsm.UseEncrypt, Params: params})
		},
		check: func(ctx context.Context, _, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
			got, err := use(ctx, two, k.Ref, hsm.Use{Kind: hsm.UseDecrypt, Params: params, Data: given})
			if err == nil && !bytes.Equal(got, question) {
				err = errAnswer
			}
			return err
		},
	}
}

// verify verifies with the other half of the key in one region; a key that was
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
	return public.Verify(mech.SignParams{Mechanism: params.Mechanism, Hash: params.Hash}, question, signature)
}

// signed is for keys whose signatures vary: region two signs and region one
// verifies, and the other way round.
func signed(mechanism string) test {
	params := hsm.Params{Mechanism: mechanism, Hash: "sha256"}
	return test{
		ask: func(ctx context.Context, one *cluster.Cluster, k hsm.KeyInfo) ([]byte, error) {
			return use(ctx, one, k.Ref, hsm.Use{Kind: hsm.UseSign, Params: params})
		},
		check: func(ctx context.Context, one, two *cluster.Cluster, k hsm.KeyInfo, given []byte) error {
			signature, err := use(ctx, two, k.Ref, hsm.Use{Kind: hsm.UseSign, Params: params})
			if err != nil {
				return err
			}
			if err := verify(ctx, one, k, params, signature); err != nil {
				return fmt.Errorf("region one does not accept its signature: %w", err)
			}
			if err := verify(ctx, two, k, params, given); err != nil {
				return fmt.Errorf("it does not accept region one's signature: %w", err)
			}
			return nil
		},
	}
}

// askOne collects an answer of every key of every user of region one.
func (d *drill) askOne(ctx context.Context) error {
	d.answers = nil
	for name, c := range d.one.users {
		if err := d.askUser(ctx, name, c); err != nil {
			return err
		}
	}
	if len(d.answers) == 0 {
		return fmt.Errorf("%w: region one has no keys", hsm.ErrNotFound)
	}
	return nil
}

func (d *drill) askUser(ctx context.Context, name string, c *cluster.Cluster) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	var mu sync.Mutex
	for k, err := range c.Keys(ctx, hsm.Filter{Owner: name}) {
		if err != nil {
			return err
		}
		if !k.Token {
			continue
		}
		how, ok := testFor(k.KeyInfo)
		if !ok {
			return fmt.Errorf("%w: no test for %s %s %s", hsm.ErrInvalid, k.Class, k.Type, k.Label)
		}
		g.Go(func() error {
			given, err := how.ask(gctx, c, k.KeyInfo)
			if err != nil {
				return fmt.Errorf("use %s %s: %w", k.Class, k.Label, err)
			}
			mu.Lock()
			defer mu.Unlock()
			d.answers = append(d.answers, answer{key: k.KeyInfo, user: name, given: given, how: how})
			return nil
		})
	}
	return g.Wait()
}

// check uses the key in region two and holds it against the answer.
func (a answer) check(ctx context.Context, one, two *region) error {
	user := two.users[a.user]
	if user == nil {
		return fmt.Errorf("%s %s %s: %s is not logged in in region two", a.key.Class, a.key.Ref, a.key.Label, a.user)
	}
	err := a.how.check(ctx, one.users[a.user], user, a.key, a.given)
	if err != nil {
		return fmt.Errorf("%s %s %s: %w", a.key.Class, a.key.Ref, a.key.Label, err)
	}
	return nil
}
