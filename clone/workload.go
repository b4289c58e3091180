package clone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"crypto/x509"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// writers is how many callers make keys at once.
const writers = 16

// everyType asks for one key of every type and size there is.
func everyType() []hsm.CreateRequest {
	var out []hsm.CreateRequest
	add := func(r hsm.CreateRequest, label string, flags ...string) {
		r.Method, r.Token = hsm.MethodGenerate, true
		r.Attributes = map[string]string{"label": label, "id": fmt.Sprintf("%04x", len(out)+1)}
		r.Public = map[string]string{}
		for _, f := range flags {
			into := r.Attributes
			if f == "verify" || (f == "encrypt" || f == "wrap") && r.Type == "rsa" {
				into = r.Public
			}
			into[f] = "true"
		}
		out = append(out, r)
	}
	for _, n := range []int{16, 24, 32} {
		add(hsm.CreateRequest{Type: "aes", Size: n}, fmt.Sprintf("aes-%d", n*8), "encrypt", "decrypt", "wrap", "unwrap")
	}
	if !fips140.Enabled() { // where none are made
		add(hsm.CreateRequest{Type: "des3", Size: 24}, "des3", "encrypt", "decrypt")
	}
	add(hsm.CreateRequest{Type: "generic-secret", Size: 32}, "hmac")
	for _, n := range []int{2048, 3072, 4096} {
		add(hsm.CreateRequest{Type: "rsa", Size: n}, fmt.Sprintf("rsa-%d", n), "sign", "decrypt", "unwrap", "verify", "encrypt", "wrap")
	}
	for _, curve := range []string{"secp224r1", "secp256r1", "secp384r1", "secp521r1", "secp256k1"} {
		add(hsm.CreateRequest{Type: "ec", Curve: curve}, "ec-"+curve, "sign", "derive", "verify")
	}
	add(hsm.CreateRequest{Type: "ed25519"}, "ed25519", "sign", "verify")
	for _, n := range []int{44, 65, 87} {
		add(hsm.CreateRequest{Type: "ml-dsa", Size: n}, fmt.Sprintf("ml-dsa-%d", n), "sign", "verify")
	}
	for _, n := range []int{768, 1024} {
		add(hsm.CreateRequest{Type: "ml-kem", Size: n}, fmt.Sprintf("ml-kem-%d", n), "derive")
	}
	return out
}

// populate makes the users, and as alice keys in every way there is.
func (d *drill) populate(ctx context.Context) error {
	for _, p := range []person{d.people.alice, d.people.bob} {
		if err := createUser(ctx, d.one.admin, p); err != nil {
			return err
		}
		if err := d.one.login(ctx, p); err != nil {
			return fmt.Errorf("log %s in: %w", p.name, err)
		}
	}
	alice := d.one.users["alice"]
	if err := d.createAll(ctx, alice, d.types); err != nil {
		return err
	}
	if err := d.createAll(ctx, alice, bulk("bulk", d.o.Keys)); err != nil {
		return err
	}
	if err := otherWays(ctx, alice); err != nil {
		return err
	}
	session, err := alice.Create(ctx, hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: map[string]string{"label": "session"}}, cluster.Policy{})
	if err != nil {
		return fmt.Errorf("make a session key: %w", err)
	}
	d.session = session.Keys[0].Ref
	return nil
}

func createUser(ctx context.Context, admin *cluster.Cluster, p person) error {
	_, err := admin.Change(ctx, hsm.Change{Kind: hsm.ChangeUserCreate, User: p.name, Role: p.role, Password: hsm.NewSecret(append([]byte{}, p.password.Reveal()...))})
	if err != nil {
		return fmt.Errorf("make user %s: %w", p.name, err)
	}
	return nil
}

func bulk(label string, n int) []hsm.CreateRequest {
	out := make([]hsm.CreateRequest, n)
	for i := range out {
		out[i] = hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32,
			Attributes: map[string]string{"label": fmt.Sprintf("%s-%d", label, i), "encrypt": "true", "decrypt": "true"}}
	}
	return out
}

// createAll makes keys with several callers at once.
func (d *drill) createAll(ctx context.Context, c *cluster.Cluster, requests []hsm.CreateRequest) error {
	made := d.tally(len(requests))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, r := range requests {
		g.Go(func() error {
			if _, err := c.Create(ctx, r, cluster.Policy{}); err != nil {
				return fmt.Errorf("make %s: %w", r.Attributes["label"], err)
			}
			made()
			return nil
		})
	}
	return g.Wait()
}

// otherWays imports, wraps and unwraps, derives and shares.
func otherWays(ctx context.Context, c *cluster.Cluster) error {
	steps := []func(context.Context, *cluster.Cluster) error{importSecret, importPrivate, derive, share, lockDown}
	for _, mechanism := range []string{"aes-kwp", "rsa-oaep", "rsa-aes"} {
		steps = append(steps, func(ctx context.Context, c *cluster.Cluster) error { return wrapUnwrap(ctx, c, mechanism) })
	}
	for _, step := range steps {
		if err := step(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func importSecret(ctx context.Context, c *cluster.Cluster) error {
	key := make([]byte, 32)
	rand.Read(key)
	_, err := c.Create(ctx, hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: "aes", Data: hsm.NewSecret(key),
		Attributes: map[string]string{"label": "imported-aes", "encrypt": "true", "decrypt": "true"}}, cluster.Policy{})
	return named("import an AES key", err)
}

func importPrivate(ctx context.Context, c *cluster.Cluster) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	_, err = c.Create(ctx, hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: "ec", Data: hsm.NewSecret(der),
		Attributes: map[string]string{"label": "imported-ec", "sign": "true"}}, cluster.Policy{})
	return named("import an EC key", err)
}

// derive makes an AES key of an ECDH between two keys of the cluster.
func derive(ctx context.Context, c *cluster.Cluster) error {
	private, err := find(ctx, c, "ec-secp256r1", hsm.ClassPrivate)
	if err != nil {
		return err
	}
	peer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(peer.Public())
	if err != nil {
		return err
	}
	_, err = c.Create(ctx, hsm.CreateRequest{Method: hsm.MethodDerive, Token: true, Type: "aes", Size: 32, Key: private.Ref,
		Params:     hsm.Params{Mechanism: "ecdh", Peer: spki, Hash: "sha256"},
		Attributes: map[string]string{"label": "derived", "encrypt": "true", "decrypt": "true"}}, cluster.Policy{})
	return named("derive a key", err)
}

// share lets bob use one of alice's keys.
func share(ctx context.Context, c *cluster.Cluster) error {
	k, err := find(ctx, c, "aes-256", hsm.ClassSecret)
	if err != nil {
		return err
	}
	_, err = c.Change(ctx, hsm.Change{Kind: hsm.ChangeShare, Ref: k.Ref, User: "bob"})
	return named("share a key", err)
}

// lockDown makes a key that can never leave in clear or wrapped.
func lockDown(ctx context.Context, c *cluster.Cluster) error {
	_, err := c.Create(ctx, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32,
		Attributes: map[string]string{"label": "non-extractable", "extractable": "false", "encrypt": "true", "decrypt": "true"}}, cluster.Policy{})
	return named("make a non-extractable key", err)
}

// wrapUnwrap wraps the imported AES key and unwraps it as another key.
func wrapUnwrap(ctx context.Context, c *cluster.Cluster, mechanism string) error {
	payload, err := find(ctx, c, "imported-aes", hsm.ClassSecret)
	if err != nil {
		return err
	}
	wrapLabel, wrapClass, unwrapClass := "rsa-2048", hsm.ClassPublic, hsm.ClassPrivate
	if mechanism == "aes-kwp" {
		wrapLabel, wrapClass, unwrapClass = "aes-128", hsm.ClassSecret, hsm.ClassSecret
	}
	wrapping, err := find(ctx, c, wrapLabel, wrapClass)
	if err != nil {
		return err
	}
	unwrapping, err := find(ctx, c, wrapLabel, unwrapClass)
	if err != nil {
		return err
	}
	params := hsm.Params{Mechanism: mechanism}
	wrapped, err := c.Use(ctx, hsm.Use{Kind: hsm.UseWrap, Key: wrapping.Ref, Payload: payload.Ref, Params: params})
	if err != nil {
		return named("wrap by "+mechanism, err)
	}
	_, err = c.Create(ctx, hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: true, Type: "aes", Class: hsm.ClassSecret, Key: unwrapping.Ref,
		Data: hsm.NewSecret(wrapped), Params: params,
		Attributes: map[string]string{"label": "unwrapped-" + mechanism, "encrypt": "true", "decrypt": "true"}}, cluster.Policy{})
	return named("unwrap by "+mechanism, err)
}

func named(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// find returns the one key of a label and class.
func find(ctx context.Context, c *cluster.Cluster, label string, class hsm.Class) (cluster.Key, error) {
	for k, err := range c.Keys(ctx, hsm.Filter{Attrs: map[string]string{"label": label, "class": string(class)}}) {
		return k, err
	}
	return cluster.Key{}, fmt.Errorf("%w: no %s %s", hsm.ErrNotFound, class, label)
}

// goOn makes, changes and destroys keys and makes a user after the snapshot.
func (d *drill) goOn(ctx context.Context) error {
	if err := createUser(ctx, d.one.admin, d.people.carol); err != nil {
		return err
	}
	if err := d.one.login(ctx, d.people.carol); err != nil {
		return err
	}
	if err := d.createAll(ctx, d.one.users["carol"], bulk("carol", 5)); err != nil {
		return err
	}
	alice := d.one.users["alice"]
	if err := d.createAll(ctx, alice, append(bulk("later", 20), ecPair("later-ec"))); err != nil {
		return err
	}
	changes := []struct {
		label  string
		change hsm.Change
	}{
		{"aes-192", hsm.Change{Kind: hsm.ChangeAttribute, Name: "label", Value: "aes-192-renamed"}},
		{"imported-aes", hsm.Change{Kind: hsm.ChangeAttribute, Name: "extractable", Value: "false"}},
		{"hmac", hsm.Change{Kind: hsm.ChangeShare, User: "bob"}},
		{"aes-256", hsm.Change{Kind: hsm.ChangeUnshare, User: "bob"}},
		{"derived", hsm.Change{Kind: hsm.ChangeDestroy}},
		{"unwrapped-aes-kwp", hsm.Change{Kind: hsm.ChangeDestroy}},
	}
	for _, c := range changes {
		k, err := find(ctx, alice, c.label, hsm.ClassSecret)
		if err != nil {
			return err
		}
		c.change.Ref = k.Ref
		if _, err := alice.Change(ctx, c.change); err != nil {
			return fmt.Errorf("%s %s: %w", c.change.Kind, c.label, err)
		}
		if c.change.Kind == hsm.ChangeDestroy {
			d.gone = append(d.gone, k.Ref)
		}
	}
	if err := d.one.auto.Wait(ctx, 0); err != nil {
		return err
	}
	return d.askOne(ctx)
}

func ecPair(label string) hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ec", Curve: "secp256r1",
		Attributes: map[string]string{"label": label, "sign": "true", "derive": "true"}, Public: map[string]string{"verify": "true"}}
}
