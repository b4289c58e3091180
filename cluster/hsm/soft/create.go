package soft

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Create implements hsm.Session. Keys are made by crypto users, and by MethodInsert also
// by those who may insert masked objects.
func (s *session) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (made hsm.Created, err error) {
	done, err := s.enter(ctx, createRoles(r.Method)...)
	if err != nil {
		return hsm.Created{}, err
	}
	defer done()
	defer func() {
		var ref hsm.KeyRef
		if len(made.Keys) > 0 {
			ref = made.Keys[0].Ref
		}
		s.audit(ctx, "create", ref, string(r.Method)+" token "+strconv.FormatBool(r.Token)+" op "+hex.EncodeToString(op[:]), err)
	}()
	s.uses.RLock()
	defer s.uses.RUnlock()
	switch r.Method {
	case hsm.MethodInsert:
		return s.insertMasked(op, r)
	case hsm.MethodPromote:
		return s.promote(op, r)
	}
	need, err := s.baseQuorum(r)
	if err != nil {
		return hsm.Created{}, err
	}
	err = s.withApproval(ctx, r.Approvals, need, func() error {
		recs, err := s.bear(r)
		if err != nil {
			return err
		}
		if r.Token {
			made, err = s.prepareNew(op, r, recs, nil)
		} else {
			made, err = s.keepAll(op, recs)
		}
		return err
	})
	return made, err
}

// baseQuorum is what a creation takes that uses another key.
func (s *session) baseQuorum(r hsm.CreateRequest) (demand, error) {
	service, uses := map[hsm.Method]hsm.Service{
		hsm.MethodUnwrap: hsm.ServiceKeyManagement, hsm.MethodCopy: hsm.ServiceKeyManagement, hsm.MethodDerive: hsm.ServiceKeyUsage,
	}[r.Method]
	if !uses {
		return demand{}, nil
	}
	e, _, err := s.lookup(r.Key)
	if err != nil {
		return demand{}, err
	}
	return s.keyQuorum(e.rec, service), nil
}

func createRoles(m hsm.Method) []hsm.Role {
	if m == hsm.MethodInsert {
		return everyone
	}
	return []hsm.Role{hsm.RoleCryptoUser}
}

// bear makes the records that a request asks for, the private key of a pair
// first.
func (s *session) bear(r hsm.CreateRequest) ([]*hsm.Record, error) {
	shares, err := s.checkShares(r.Shares)
	if err != nil {
		return nil, err
	}
	born, err := s.conceive(&r)
	if err != nil {
		return nil, err
	}
	check, err := born[0].checkValue() // which is that of both halves of a pair
	if err != nil {
		return nil, err
	}
	recs := make([]*hsm.Record, len(born))
	refs := []hsm.KeyRef{hsm.NewKeyRef(), hsm.NewKeyRef()}
	for i, b := range born {
		wanted, pair := r.Attributes, hsm.KeyRef(0)
		if len(born) == 2 {
			pair = refs[1-i]
		}
		if i == 1 {
			wanted, shares = publicTemplate(r), nil // every crypto user sees it
		}
		if recs[i], err = s.record(b, check, refs[i], pair, wanted, shares, r.Token); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

// checkShares returns the canonical names of crypto users.
func (s *session) checkShares(names []string) ([]string, error) {
	var shares []string
	for _, name := range names {
		user, err := s.h.shareable(name)
		if err != nil {
			return nil, err
		}
		if user == s.who.Name {
			return nil, fmt.Errorf("%w: %q is the owner; share with others", hsm.ErrInvalid, user)
		}
		shares = append(shares, user)
	}
	return shares, nil
}

// conceive makes what the records are to hold. The attributes of a copy become those of
// the request.
func (s *session) conceive(req *hsm.CreateRequest) ([]newborn, error) {
	r := *req
	if len(r.Public) > 0 && r.Method != hsm.MethodGenerate {
		return nil, fmt.Errorf("%w: attributes of a public key are for generated pairs", hsm.ErrInvalid)
	}
	var b newborn
	var err error
	switch r.Method {
	case hsm.MethodGenerate:
		return generated(r)
	case hsm.MethodImport:
		b, err = imported(r, hsm.MethodImport)
	case hsm.MethodUnwrap:
		b, req.Attributes, err = s.unwrapped(r)
	case hsm.MethodDerive:
		b, req.Attributes, err = s.derived(r)
	case hsm.MethodCopy:
		b, req.Attributes, err = s.copied(r)
	default:
		err = fmt.Errorf("%w: method %q: want %s, %s, %s, %s, %s, %s or %s", hsm.ErrInvalid, r.Method, hsm.MethodGenerate,
			hsm.MethodImport, hsm.MethodUnwrap, hsm.MethodDerive, hsm.MethodCopy, hsm.MethodPromote, hsm.MethodInsert)
	}
	return []newborn{b}, err
}

// publicTemplate is the template of a pair's public key: label and id are
// those of the private key unless it has its own.
func publicTemplate(r hsm.CreateRequest) map[string]string {
	t := map[string]string{}
	for _, name := range []string{"label", "id"} {
		if v, ok := r.Attributes[name]; ok {
			t[name] = v
		}
	}
	for name, v := range r.Public {
		t[name] = v
	}
	return t
}

// record turns key material into a record and counts its birth.
func (s *session) record(b newborn, check []byte, ref, pair hsm.KeyRef, wanted map[string]string, shares []string, token bool) (*hsm.Record, error) {
	if err := s.laterThanOwner(); err != nil {
		return nil, err
	}
	at := s.h.clock.Next()
	registers, err := template(b.class, string(b.spec.Type), token, wanted, at)
	if err != nil {
		return nil, err
	}
	if err := b.keepCareful(registers, wanted, at); err != nil {
		return nil, err
	}
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref, Registers: registers, Hidden: map[string]hsm.Register{}, Material: hsm.NewSecret(b.secret),
		Core: hsm.Core{
			Class: b.class, Type: string(b.spec.Type), Size: b.spec.Size, Curve: string(b.spec.Curve), Origin: b.origin,
			Created: at, Owner: s.who.Name, Public: b.public, Check: check, Pair: pair,
		},
	}
	for _, user := range shares {
		r.Set(hsm.ShareRegister(user), hsm.BoolValue(true), at)
	}
	if err := fitQuorum(r, token); err != nil {
		return nil, err
	}
	b.rememberBirth(r)
	if token { // of others only if they are promoted: nobody else will know them
		r.Birth, err = s.h.keys().Birth(r)
	}
	return r, err
}

// laterThanOwner sees to it that a key made from now on is later than its owner,
// as owns asks, also after this HSM's clock was set back.
func (s *session) laterThanOwner() error {
	u, _ := s.h.users.get(s.who.Name)
	if u.incarnation == 0 {
		return nil
	}
	return s.h.clock.Observe(u.created)
}

// keepCareful makes a key that a trusted key unwrapped one that only trusted keys
// wrap: it may have been one before, and would lose that otherwise.
func (b newborn) keepCareful(registers map[string]hsm.Register, wanted map[string]string, at hsm.Stamp) error {
	if !b.careful {
		return nil
	}
	register := hsm.AttributeRegister("wrap-with-trusted")
	if _, asked := wanted["wrap-with-trusted"]; asked && !registers[register].Bool() {
		return fmt.Errorf("%w: a key unwrapped with a trusted key has wrap-with-trusted set; leave it out", hsm.ErrAttribute)
	}
	registers[register] = hsm.Register{Stamp: at, Value: hsm.BoolValue(true)}
	return nil
}

// rememberBirth decides always-sensitive and never-extractable (PKCS #11 v2.40
// §4.9): what was ever outside was neither; what was derived or copied inherits.
func (b newborn) rememberBirth(r *hsm.Record) {
	sensitive, extractable := r.Flag("sensitive"), r.Flag("extractable")
	switch {
	case b.origin == hsm.MethodGenerate && b.base == nil:
	case b.base != nil:
		sensitive = sensitive && b.base.Core.SensitiveAtBirth
		extractable = extractable || b.base.Core.ExtractableAtBirth
	default:
		sensitive, extractable = false, true
	}
	r.Core.SensitiveAtBirth, r.Core.ExtractableAtBirth = sensitive, extractable
}

// keepAll keeps new keys as session keys.
func (s *session) keepAll(op hsm.OpID, recs []*hsm.Record) (hsm.Created, error) {
	var made hsm.Created
	var keys []*sessionKey
	for _, r := range recs {
		k := &sessionKey{entry: newEntry(r, hsm.Digest{}), op: op}
		keys, made.Keys = append(keys, k), append(made.Keys, k.info())
	}
	if err := s.keep(op, keys...); err != nil {
		return hsm.Created{}, err
	}
	return made, nil
}

func (k *sessionKey) info() hsm.KeyInfo {
	i := infoOf(k.entry.rec, hsm.Digest{})
	i.SetToken(false)
	return i
}

// prepareNew makes records durable and provisional.
func (s *session) prepareNew(op hsm.OpID, r hsm.CreateRequest, recs []*hsm.Record, committed func()) (hsm.Created, error) {
	var made hsm.Created
	p := &pending{op: op, by: s.who, recs: recs, births: map[hsm.KeyRef][16]byte{}, fresh: true, committed: committed}
	for _, rec := range recs {
		m, err := s.h.keys().Mask(rec)
		if err != nil {
			return hsm.Created{}, err
		}
		p.objects, p.births[rec.Ref] = append(p.objects, m), rec.Birth
		made.Keys = append(made.Keys, infoOf(rec, m.Digest))
	}
	if err := s.h.prepareFresh(p, r); err != nil {
		return hsm.Created{}, err
	}
	made.Objects = p.objects
	return made, nil
}

// prepareFresh is prepare for an operation that makes new keys: an operation
// that the HSM has seen before is refused, since its keys would be others.
func (h *HSM) prepareFresh(p *pending, r hsm.CreateRequest) error {
	if h.ops.get(p.op) != nil {
		return fmt.Errorf("%w: operation %x is pending here", hsm.ErrExist, p.op)
	}
	return h.prepare(p, r.Lease)
}

// insertMasked prepares masked objects exported earlier.
func (s *session) insertMasked(op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	if !r.Token {
		return hsm.Created{}, fmt.Errorf("%w: masked objects are inserted as token keys", hsm.ErrInvalid)
	}
	p := &pending{op: op, by: s.who, objects: r.Masked, births: map[hsm.KeyRef][16]byte{}, copies: true}
	if err := s.admitAll(p); err != nil {
		return hsm.Created{}, err
	}
	if err := s.h.ownersKnown(p.recs); err != nil {
		return hsm.Created{}, err
	}
	made := hsm.Created{Objects: p.objects}
	for i, m := range p.objects {
		made.Keys = append(made.Keys, infoOf(p.recs[i], m.Digest))
	}
	if err := s.h.prepare(p, r.Lease); err != nil {
		return hsm.Created{}, err
	}
	return made, nil
}

// ownersKnown checks that whoever owns the keys, or has them shared, is a crypto
// user here: keys that nobody may use or destroy are not let in.
func (h *HSM) ownersKnown(recs []*hsm.Record) error {
	for _, r := range recs {
		for _, name := range append([]string{r.Core.Owner}, r.Shares()...) {
			if _, err := h.users.cryptoUser(name); err != nil {
				return fmt.Errorf("key %s belongs to %q, shared with %q: %w; make the user first, or bring it with synckey --users", r.Ref, r.Core.Owner, r.Shares(), err)
			}
		}
		if !h.owns(r.Core.Owner, r) {
			return fmt.Errorf("%w: key %s belongs to a %q who was deleted; the user of that name now is another one", hsm.ErrNotFound, r.Ref, r.Core.Owner)
		}
	}
	return nil
}

// promote makes a token key of a session key: under the same reference and with
// the same birth. The session key stays as it is until the operation is
// committed, and is gone then.
func (s *session) promote(op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	switch {
	case !r.Token:
		return hsm.Created{}, fmt.Errorf("%w: promotion makes a token key; set token", hsm.ErrInvalid)
	case len(r.Attributes) > 0 || len(r.Shares) > 0:
		return hsm.Created{}, fmt.Errorf("%w: a promoted key keeps its attributes; change them before or after", hsm.ErrInvalid)
	}
	k := s.sessionKey(r.Key)
	if k == nil {
		return hsm.Created{}, fmt.Errorf("%w: this session has no session key %s", hsm.ErrNotFound, r.Key)
	}
	rec := *k.entry.rec
	var err error
	if rec.Birth, err = s.h.keys().Birth(&rec); err != nil {
		return hsm.Created{}, err
	}
	made, err := s.prepareNew(op, r, []*hsm.Record{&rec}, func() { s.forget(rec.Ref) })
	if err == nil && s.sessionKey(r.Key) != k { // from here on it does not change
		err = errors.Join(fmt.Errorf("%w: session key %s was changed or destroyed meanwhile; nothing was done", hsm.ErrExist, r.Key), s.h.drop(op))
	}
	if err != nil {
		return hsm.Created{}, err
	}
	return made, nil
}
