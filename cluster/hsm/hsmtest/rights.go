package hsmtest

import (
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// call is one method as the table of rights sees it.
type call struct {
	name  string
	roles string // who may: letters of a(dmin), u(ser, crypto), p(appliance), h(sm), n(obody)
	run   func(s hsm.Session) error
}

// testRights walks the table of cloudhsm.md §1.4: who may not gets ErrDenied,
// and who may gets anything else.
func testRights(w *world) {
	n := w.node()
	k := n.aes(n.user(alice), "encrypt", "decrypt")
	sessions := map[byte]hsm.Session{'a': n.admin(), 'u': n.user(alice), 'p': n.appliance(), 'h': n.hsm(), 'n': n.nobody()}
	for _, c := range rights(n, k.Ref) {
		for letter, s := range sessions {
			err := c.run(s)
			if allowed := slices.Contains([]byte(c.roles), letter); allowed {
				if errorIs(err, hsm.ErrDenied) {
					w.Errorf("%s by %c: %v, want it allowed", c.name, letter, err)
				}
				continue
			}
			w.want(c.name+" by "+string(letter), err, hsm.ErrDenied)
		}
	}
}

func rights(n *node, key hsm.KeyRef) []call {
	w := n.w
	change := func(c hsm.Change) func(hsm.Session) error {
		return func(s hsm.Session) error {
			_, err := s.Change(n.ctx(), c)
			return err
		}
	}
	use := func(u hsm.Use) func(hsm.Session) error {
		return func(s hsm.Session) error {
			_, err := s.Use(n.ctx(), u)
			return err
		}
	}
	create := func(r hsm.CreateRequest) func(hsm.Session) error {
		return func(s hsm.Session) error {
			_, err := n.tryCreate(s, r)
			return err
		}
	}
	sign := func(p hsm.Purpose) func(hsm.Session) error {
		return func(s hsm.Session) error {
			_, err := s.Sign(n.ctx(), p, nil)
			return err
		}
	}
	members := func(s hsm.Session) hsm.SketchReplica { return s.Scoped(hsm.ScopeCluster) }
	m := w.extractOne(n.hsm(), key)
	return []call{
		{"info", "auphn", func(s hsm.Session) error { _, err := s.Info(n.ctx()); return err }},
		{"members", "auphn", func(s hsm.Session) error { _, err := s.Members(n.ctx()); return err }},
		{"users", "auph", func(s hsm.Session) error { _, err := s.Users(n.ctx()); return err }},
		{"tokens", "au", func(s hsm.Session) error { _, err := s.Tokens(n.ctx()); return err }},
		{"delete tokens", "a", func(s hsm.Session) error { _, err := s.DeleteTokens(n.ctx(), false); return err }},
		{"delete all tokens", "a", func(s hsm.Session) error { _, err := s.DeleteTokens(n.ctx(), true); return err }},
		{"token timeout", "a", change(hsm.Change{Kind: hsm.ChangeQuorumTimeout, Name: hsm.TimeoutGenerated, Value: "600"})},
		{"keys", "auph", func(s hsm.Session) error { return errOf(s.Keys(n.ctx(), hsm.Filter{})) }},
		{"key", "auph", func(s hsm.Session) error { _, err := s.Key(n.ctx(), key); return err }},
		{"root", "auph", func(s hsm.Session) error { _, err := s.Root(n.ctx()); return err }},
		{"cells", "auph", func(s hsm.Session) error { return errOf(s.Cells(n.ctx(), 0)) }},
		{"fingerprint keys", "auph", func(s hsm.Session) error { _, err := s.FingerprintKeys(n.ctx()); return err }},
		{"objects", "auph", func(s hsm.Session) error { return errOf(s.Objects(n.ctx())) }},
		{"extract", "auph", func(s hsm.Session) error { return errOf(s.Extract(n.ctx(), slices.Values([]hsm.KeyRef{key}))) }},
		{"insert", "auph", func(s hsm.Session) error { _, err := w.insert(s, m); return err }},
		{"cluster root", "aph", func(s hsm.Session) error { _, err := members(s).Root(n.ctx()); return err }},
		{"cluster objects", "aph", func(s hsm.Session) error { return errOf(members(s).Objects(n.ctx())) }},
		{"cluster cells", "aph", func(s hsm.Session) error { return errOf(members(s).Cells(n.ctx(), 0)) }},
		{"cluster insert", "aph", func(s hsm.Session) error { _, err := w.insert(members(s)); return err }},
		{"prepare", "auph", func(s hsm.Session) error {
			return s.Prepare(n.ctx(), newOp(), time.Minute, []hsm.MaskedObject{w.mask(w.key(hsm.NewKeyRef(), alice, w.now()))})
		}},
		{"commit", "auph", func(s hsm.Session) error { return s.Commit(n.ctx(), newOp()) }},
		{"abort", "auph", func(s hsm.Session) error { return s.Abort(n.ctx(), newOp()) }},
		{"resolve", "auph", func(s hsm.Session) error { _, err := s.Resolve(n.ctx(), newOp()); return err }},
		{"generate", "u", create(aesRequest())},
		{"generate a session key", "u", create(hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 16})},
		{"import", "u", create(hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: "aes", Data: hsm.NewSecret(make([]byte, 16))})},
		{"insert masked", "auph", create(hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: []hsm.MaskedObject{m}})},
		{"encrypt", "u", use(hsm.Use{Kind: hsm.UseEncrypt, Key: key, Params: hsm.Params{Mechanism: "aes-gcm"}})},
		{"random", "u", use(hsm.Use{Kind: hsm.UseRandom, Length: 8})},
		{"destroy", "u", change(hsm.Change{Kind: hsm.ChangeDestroy, Ref: hsm.NewKeyRef()})},
		{"revive", "au", change(hsm.Change{Kind: hsm.ChangeRevive, Ref: hsm.NewKeyRef(), Masked: &m})},
		{"supersede", "au", change(hsm.Change{Kind: hsm.ChangeSupersede, Ref: key, Masked: &m, Value: birthOf(w, m)})},
		{"keep a copy", "au", change(hsm.Change{Kind: hsm.ChangeKeepCopy, Ref: key, Masked: &m, Value: birthOf(w, m)})},
		{"set label", "u", change(hsm.Change{Kind: hsm.ChangeAttribute, Ref: key, Name: "label", Value: "x"})},
		{"set trusted", "a", change(hsm.Change{Kind: hsm.ChangeAttribute, Ref: key, Name: "trusted", Value: "true"})},
		{"share", "u", change(hsm.Change{Kind: hsm.ChangeShare, Ref: key, User: bob})},
		{"unshare", "u", change(hsm.Change{Kind: hsm.ChangeUnshare, Ref: key, User: bob})},
		{"create user", "a", change(hsm.Change{Kind: hsm.ChangeUserCreate, User: "carol", Role: hsm.RoleCryptoUser, Password: password("carol")})},
		{"delete user", "a", change(hsm.Change{Kind: hsm.ChangeUserDelete, User: "dave"})},
		{"password of another", "a", change(hsm.Change{Kind: hsm.ChangeUserPassword, User: bob, Password: password(bob)})},
		{"unlock", "ah", change(hsm.Change{Kind: hsm.ChangeUserUnlock, User: bob})},
		{"member", "ah", change(hsm.Change{Kind: hsm.ChangeMember, Member: &hsm.Member{ID: n.id, Address: "127.0.0.1:1"}})},
		{"settings", "a", func(s hsm.Session) error {
			if s.Principal().Role == hsm.RoleHSM {
				// The first settings are an HSM's to make; these are the second.
				w.must(n.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1}}))
			}
			return change(hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1}})(s)
		}},
		{"envelope to others", "a", func(s hsm.Session) error {
			_, err := s.Envelope(n.ctx(), []string{"age1other"}, 1)
			return err
		}},
		{"sign a manifest", "aph", sign(hsm.PurposeManifest)},
		{"sign a report", "aph", sign(hsm.PurposeReport)},
		{"sign a challenge", "auph", sign(hsm.PurposeChallenge)},
	}
}
