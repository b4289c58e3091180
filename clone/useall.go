package clone

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
	"github.com/hsmbackup/hsmbackup/cluster/keytest"
)

// Used counts the keys that were used.
type Used struct {
	Keys     int      // that answered rightly
	Checked  int      // whose check value was computed again
	Failures []string // keys that did not, and why; sorted
}

// UseAll opens every live key of a snapshot in the memory of this process and
// uses it: check values are computed again from the material, private keys sign
// for their public halves, secret keys undo what they did. It needs the
// identities of recipient and custodians. Nothing is written anywhere. A key of
// which the snapshot holds several states counts once, and all of them must be
// good.
func UseAll(ctx context.Context, s *backup.Snapshot) (Used, error) {
	keyring, _, err := s.Recovery(ctx)
	if err != nil {
		return Used{}, err
	}
	used, _, err := useAll(ctx, keyring, s)
	return used, err
}

// useAll uses every live key of a source, and tells when the first one answered.
func useAll(ctx context.Context, k *hsm.Keyring, src hsm.Source) (Used, time.Time, error) {
	u := &using{keyring: k, bad: map[hsm.KeyRef]bool{}, good: map[hsm.KeyRef]bool{}}
	var listing error
	refs := func(yield func(hsm.KeyRef) bool) {
		for o, err := range src.Objects(ctx) {
			if listing = err; err != nil {
				return
			}
			if o.Kind == hsm.KindKey && !o.Tombstone && !yield(o.Ref) {
				return
			}
		}
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	var reading error
	for m, err := range src.Extract(ctx, iter.Seq[hsm.KeyRef](refs)) {
		if reading = err; err != nil {
			break
		}
		g.Go(func() error { u.use(m); return nil })
	}
	_ = g.Wait() // what does not work is in u
	slices.Sort(u.Failures)
	u.Keys = len(u.good)
	if reading != nil {
		return u.Used, u.first, reading
	}
	return u.Used, u.first, listing
}

// using is UseAll under way.
type using struct {
	keyring *hsm.Keyring

	mu sync.Mutex
	Used
	good, bad map[hsm.KeyRef]bool
	first     time.Time
}

func (u *using) use(m hsm.MaskedObject) {
	check, destroyed, err := u.test(m)
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case err != nil:
		u.Failures = append(u.Failures, fmt.Sprintf("key %s: %v", m.Ref, err))
		u.bad[m.Ref] = true
		delete(u.good, m.Ref)
		return
	case destroyed || u.bad[m.Ref] || u.good[m.Ref]:
		return
	}
	if u.good[m.Ref] = true; len(check) > 0 {
		u.Checked++
	}
	if u.first.IsZero() {
		u.first = time.Now()
	}
}

// test opens a key, uses it, and holds its check value against its record.
func (u *using) test(m hsm.MaskedObject) (check []byte, destroyed bool, err error) {
	r, err := u.keyring.Unmask(m)
	if err != nil || r.Destroyed {
		return nil, err == nil, err
	}
	defer r.Material.Wipe()
	if check, err = selfTest(r); err != nil {
		return nil, false, err
	}
	if !bytes.Equal(check, r.Core.Check) {
		return nil, false, fmt.Errorf("%w: check value %x, its record says %x", hsm.ErrCorrupt, check, r.Core.Check)
	}
	return check, false, nil
}

// selfTest uses a key against itself and returns its check value.
func selfTest(r *hsm.Record) ([]byte, error) {
	switch r.Core.Class {
	case hsm.ClassData, hsm.ClassCertificate:
		return nil, nil // it was opened, and there is nothing to use
	case hsm.ClassPublic:
		return mech.CheckValuePublic(r.Core.Public)
	case hsm.ClassPrivate:
		return privateTest(r)
	}
	key, err := mech.ParseSecret(mech.KeyType(r.Core.Type), r.Material.Reveal())
	if err != nil {
		return nil, err
	}
	switch r.Core.Type {
	case "aes":
		err = secretRoundTrip(key)
	case "des3": // which does not encrypt in FIPS mode; its check value is compared
		_, err = key.Decrypt(nil, mech.CryptParams{Mechanism: "des3-ecb"}, keytest.Question[:8])
	default:
		_, err = key.MAC(mech.SignParams{Mechanism: "hmac", Hash: "sha256"}, keytest.Question)
	}
	if err != nil {
		return nil, err
	}
	return mech.CheckValueSecret(mech.KeyType(r.Core.Type), r.Material.Reveal())
}

func secretRoundTrip(key *mech.SecretKey) error {
	p := mech.CryptParams{Mechanism: "aes-gcm"}
	sealed, err := key.Encrypt(nil, p, keytest.Question)
	if err != nil {
		return err
	}
	opened, err := key.Decrypt(nil, p, sealed)
	if err == nil && !bytes.Equal(opened, keytest.Question) {
		err = keytest.ErrAnswer
	}
	return err
}

// signers are the mechanisms that private keys of a type sign with.
var signers = map[string]mech.SignParams{
	"rsa": {Mechanism: "rsa-pkcs", Hash: "sha256"}, "ec": {Mechanism: "ecdsa", Hash: "sha256"}, "ed25519": {Mechanism: "ed25519"}, "ml-dsa": {Mechanism: "ml-dsa"},
}

func privateTest(r *hsm.Record) ([]byte, error) {
	private, err := mech.ParsePrivate(r.Material.Reveal())
	if err != nil {
		return nil, err
	}
	public, err := mech.ParsePublic(r.Core.Public)
	if err != nil {
		return nil, err
	}
	if r.Core.Type == "ml-kem" {
		if err := agree(private, public); err != nil {
			return nil, err
		}
		return mech.CheckValuePublic(r.Core.Public)
	}
	signature, err := private.Sign(nil, signers[r.Core.Type], keytest.Question)
	if err != nil {
		return nil, err
	}
	if err := public.Verify(signers[r.Core.Type], keytest.Question, signature); err != nil {
		return nil, fmt.Errorf("its public key does not accept its signature: %w", err)
	}
	return mech.CheckValuePublic(r.Core.Public)
}

// agree has both halves of an ml-kem key come to one shared secret.
func agree(private *mech.PrivateKey, public *mech.PublicKey) error {
	one, ciphertext, err := public.Encapsulate()
	if err != nil {
		return err
	}
	defer clear(one)
	two, err := private.Decapsulate(ciphertext)
	defer clear(two)
	if err == nil && !bytes.Equal(one, two) {
		err = fmt.Errorf("its halves come to two shared secrets: %w", keytest.ErrAnswer)
	}
	return err
}
