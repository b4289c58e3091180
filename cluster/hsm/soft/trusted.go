package soft

import (
	"bytes"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// A trusted key wraps keys that their owners may not take out otherwise
// (wrap-with-trusted). So nobody may know a trusted key or decrypt with it, its
// owner included, for as long as it is trusted: neither by name nor by way of another
// use that comes to the same (mayUseTrusted, mayWrapTrusted, mayUnwrapTrusted).

// trusted tells whether a key is trusted, or is the private half of one that is, or was
// when it was destroyed: what that has wrapped is there still. The other half is read
// without its lock: it counts as it was a moment ago.
func (h *HSM) trusted(r *hsm.Record) (bool, error) {
	if r.Flag("trusted") || r.Core.Class != hsm.ClassPrivate || r.Core.Pair == 0 {
		return r.Flag("trusted"), nil
	}
	cur, err := h.read(hsm.ScopeLineage, r.Core.Pair)
	return cur != nil && cur.rec.Kind == hsm.KindKey && cur.rec.Flag("trusted"), err
}

// mayUseTrusted refuses what a trusted key does not do, whatever its attributes say:
// they may have been set at once with trusted, on two HSMs, and of a pair each half has
// its own. A signature of rsa-x-509 is a decryption; and a CMAC is the cipher itself to
// whoever has computed its subkey while the key did encrypt, and so makes the bytes that
// hide what aes-gcm wraps.
func (h *HSM) mayUseTrusted(r *hsm.Record, attribute string) error {
	if attribute != "encrypt" && attribute != "decrypt" && attribute != "sign" {
		return nil
	}
	trusted := r.Flag("trusted")
	if !trusted && r.Core.Class == hsm.ClassPrivate && r.Core.Type == string(mech.RSA) && r.Core.Pair != 0 {
		var err error
		if trusted, err = h.pairTrusted(r); err != nil {
			return err
		}
	}
	if trusted {
		return fmt.Errorf("%w: key %s is trusted, and a trusted key only wraps and unwraps", hsm.ErrAttribute, r.Ref)
	}
	return nil
}

// pairTrusted is trusted for each signature. A public half that nobody uses takes no
// place among the keys that are kept open: there are as few as before.
func (h *HSM) pairTrusted(r *hsm.Record) (bool, error) {
	if e := h.cache.get(r.Core.Pair); e != nil {
		return e.rec.Flag("trusted"), nil
	}
	return h.trusted(r)
}

// mayWrapTrusted refuses ways to wrap with a trusted key in which what it wraps comes out
// otherwise. Two payloads under one IV give both away, and one of them may be known. Of
// rsa-aes the first part is a key wrapped with rsa-oaep, which its owner unwraps as a key of
// its own, and opens the second part with; and who may ask a private key often whether the
// padding of rsa-pkcs is right can decrypt with it.
func mayWrapTrusted(key, payload *hsm.Record, p hsm.Params) error {
	switch {
	case !key.Flag("trusted"):
	case len(p.IV) > 0:
		return fmt.Errorf("%w: key %s is trusted, and draws each IV itself; leave it out", hsm.ErrAttribute, key.Ref)
	case payload.Flag("wrap-with-trusted") && key.Core.Pair != 0 && p.Mechanism != mech.RSAOAEP:
		return fmt.Errorf("%w: key %s: the private half of its trusted key %s is in the HSM, which could open %.40q in parts; use %s", hsm.ErrAttribute, payload.Ref, key.Ref, p.Mechanism, mech.RSAOAEP)
	}
	return nil
}

// mayUnwrapTrusted refuses rsa-pkcs with a key that is trusted: see mayWrapTrusted.
func mayUnwrapTrusted(key *hsm.Record, p hsm.Params) error {
	if p.Mechanism == mech.RSAPKCS {
		return fmt.Errorf("%w: key %s is trusted, and does not unwrap with %s; have it wrapped with %s or %s", hsm.ErrAttribute, key.Ref, mech.RSAPKCS, mech.RSAOAEP, mech.RSAAES)
	}
	return nil
}

// pairOf returns the other half of a pair, nil if there is none here.
func (h *HSM) pairOf(r *hsm.Record) (*hsm.Record, error) {
	if r.Core.Pair == 0 {
		return nil, nil
	}
	cur, err := h.read(hsm.ScopeLineage, r.Core.Pair)
	if cur == nil || err != nil || cur.rec.Kind != hsm.KindKey || cur.rec.Destroyed {
		return nil, err
	}
	return cur.rec, nil
}

// mayTrust checks that a key is fit to be trusted: it does not encrypt or
// decrypt; a secret or private key was also generated here and never leaves.
// Who has the private half of an imported public key is for the admin to know.
func (h *HSM) mayTrust(r *hsm.Record) error {
	if err := fitToTrust(r); err != nil {
		return err
	}
	if r.Core.Class != hsm.ClassPublic {
		return h.onlyOne(r)
	}
	if r.Core.Pair == 0 {
		return nil
	}
	cur, err := h.read(hsm.ScopeLineage, r.Core.Pair)
	switch {
	case err != nil:
		return err
	case cur == nil:
		return fmt.Errorf("%w: key %s: its private half %s is not here, and may be a session key that decrypts; make both token keys", hsm.ErrAttribute, r.Ref, r.Core.Pair)
	case cur.rec.Kind != hsm.KindKey || cur.rec.Destroyed: // it comes back fit for it, or not at all: see mayRevive
		return nil
	}
	pair := cur.rec
	if pair.Core.Pair != r.Ref || !bytes.Equal(pair.Core.Public, r.Core.Public) {
		// It was kept under another reference when another birth took its place.
		return fmt.Errorf("%w: key %s: what is under %s is not its private half, so nobody can tell who has that", hsm.ErrAttribute, r.Ref, r.Core.Pair)
	}
	if err := fitToTrust(pair); err != nil {
		return err
	}
	return h.onlyOne(pair)
}

// onlyOne refuses a key that is there under another reference too: one that was kept
// when it was to give way to another birth, and stands all the same, or one that was
// kept from a key that did not give way. What is set of the one does not hold for the
// other.
func (h *HSM) onlyOne(r *hsm.Record) error {
	kept, err := h.keptCopy(r)
	if err != nil {
		return err
	}
	if kept != nil {
		return fmt.Errorf("%w: key %s is also kept as %s, where it may decrypt; destroy that first", hsm.ErrAttribute, r.Ref, kept.Ref)
	}
	for _, from := range r.KeptFrom() {
		if err := h.gaveWay(r, from); err != nil {
			return err
		}
	}
	return nil
}

// keptCopy returns the live key that is kept of another one, nil if there is none.
func (h *HSM) keptCopy(r *hsm.Record) (*hsm.Record, error) {
	kept, err := h.read(hsm.ScopeLineage, h.keys().KeptRef(r.Ref, r.Birth))
	if err != nil || kept == nil || kept.obj.Tombstone {
		return nil, err
	}
	return kept.rec, nil
}

// gaveWay refuses a key that was kept from another one, unless it is known here that
// that one gave way or is destroyed.
func (h *HSM) gaveWay(r *hsm.Record, from hsm.Origin) error {
	cur, err := h.read(hsm.ScopeLineage, from.Ref)
	if err != nil {
		return err
	}
	switch {
	case cur == nil || !cur.rec.Names(from.Birth):
		return fmt.Errorf("%w: key %s was kept from %s, which has not given way here, and may decrypt; decide between its births first (synckey resolve)", hsm.ErrAttribute, r.Ref, from.Ref)
	case cur.rec.Birth == from.Birth && !cur.rec.Destroyed:
		return fmt.Errorf("%w: key %s was kept from %s, which is there too, and may decrypt; destroy that first", hsm.ErrAttribute, r.Ref, from.Ref)
	}
	return nil
}

// mindCopy refuses to let a key decrypt, or come to stand again, that is kept under
// another reference where it is trusted.
func (h *HSM) mindCopy(r *hsm.Record) error {
	kept, err := h.keptCopy(r)
	if err != nil || kept == nil {
		return err
	}
	trusted, err := h.trusted(kept)
	if err == nil && trusted {
		err = fmt.Errorf("%w: key %s is kept as %s too, which is trusted; an admin withdraws trusted first", hsm.ErrAttribute, r.Ref, kept.Ref)
	}
	return err
}

func fitToTrust(r *hsm.Record) error {
	unfit := func(what string) error {
		return fmt.Errorf("%w: key %s: %s; whoever could learn what a key wraps must not have it trusted", hsm.ErrAttribute, r.Ref, what)
	}
	switch {
	case r.Flag("encrypt"):
		return unfit("encrypt is true")
	case r.Flag("decrypt"):
		return unfit("decrypt is true")
	case r.Core.Class == hsm.ClassPublic:
		return nil
	case r.Core.Origin != hsm.MethodGenerate:
		return unfit("it was not generated in an HSM")
	case r.Flag("extractable") || r.Core.ExtractableAtBirth:
		return unfit("it is or was extractable")
	}
	return nil
}

// mindTrust refuses to trust a key that is unfit, and changes that would make a
// trusted key unfit.
func (h *HSM) mindTrust(a hsm.Attribute, r *hsm.Record, value []byte) error {
	if a.Name == "trusted" && (hsm.Register{Value: value}).Bool() {
		return h.mayTrust(r)
	}
	if a.Name != "encrypt" && a.Name != "decrypt" && a.Name != "extractable" {
		return nil
	}
	trusted, err := h.trusted(r)
	if err == nil && trusted {
		return fmt.Errorf("%w: key %s is trusted, so its %s stays; an admin withdraws trusted first", hsm.ErrAttribute, r.Ref, a.Name)
	}
	if err != nil {
		return err
	}
	return h.mindCopy(r)
}

// mayDestroy keeps a trusted key from being destroyed: revived in a state from
// before it was trusted, its owner could decrypt with it what it has wrapped. What is
// left of a pair whose other half is destroyed may go.
func (h *HSM) mayDestroy(r *hsm.Record) error {
	trusted := r.Flag("trusted")
	var err error
	if r.Core.Class == hsm.ClassPrivate {
		var pair *hsm.Record
		pair, err = h.pairOf(r)
		trusted = trusted || pair != nil && pair.Flag("trusted")
	}
	if err == nil && trusted {
		return fmt.Errorf("%w: key %s is trusted, and so it stays; an admin withdraws trusted first", hsm.ErrAttribute, r.Ref)
	}
	return err
}

// mayRevive checks that a key comes back in a state that trust allows: trust is an
// admin's to give, and the other half of a trusted key must be fit for it.
func (s *session) mayRevive(r *hsm.Record) error {
	if r.Flag("trusted") && s.isUser() {
		return fmt.Errorf("%w: key %s was trusted then; an admin revives it", hsm.ErrDenied, r.Ref)
	}
	trusted, err := s.h.trusted(r)
	if err != nil || !trusted {
		return err
	}
	return s.h.mayTrust(r)
}
