package hsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"strconv"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// signer is a user's key outside the HSMs.
type signer struct {
	user string
	key  *ecdsa.PrivateKey
	spki []byte
}

func (w *world) signer(user string) signer {
	w.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.ok(err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	w.ok(err)
	return signer{user, key, spki}
}

func (w *world) signed(s signer, message []byte) []byte {
	w.Helper()
	b, err := hsm.SignWith(s.key, message)
	w.ok(err)
	return b
}

// registration is the change by which the user registers the key.
func (w *world) registration(s signer, kind hsm.ChangeKind, use hsm.SignerUse) hsm.Change {
	w.Helper()
	return hsm.Change{Kind: kind, User: s.user, Public: s.spki, Proof: w.signed(s, hsm.RegistrationMessage(use, w.keyring.Lineage(), s.user, s.spki))}
}

func (n *node) registered(s hsm.Session, user string) signer {
	n.w.Helper()
	key := n.w.signer(user)
	n.w.must(s.Change(n.ctx(), n.w.registration(key, hsm.ChangeUserQuorum, hsm.SignQuorum)))
	return key
}

// approve has users sign a token.
func (w *world) approve(token []byte, by ...signer) []hsm.Approval {
	w.Helper()
	a := hsm.Approval{Token: token}
	for _, s := range by {
		a.Signatures = append(a.Signatures, hsm.ApprovalSignature{User: s.user, Signature: w.signed(s, token)})
	}
	return []hsm.Approval{a}
}

func (n *node) token(s hsm.Session, service hsm.Service, ref hsm.KeyRef) []byte {
	n.w.Helper()
	token, err := s.Token(n.ctx(), service, ref)
	n.w.ok(err)
	return token
}

// council is an HSM with three admins who can approve.
type council struct {
	*node
	chair hsm.Session
	keys  []signer // of admin, second, third
}

func (w *world) council() council {
	w.Helper()
	n := w.node()
	c := council{node: n, chair: n.admin()}
	for _, name := range []string{"second", "third"} {
		w.must(c.chair.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleAdmin, Password: password(name)}))
	}
	for _, name := range []string{adminName, "second", "third"} {
		c.keys = append(c.keys, n.registered(n.login(hsm.RoleAdmin, name), name))
	}
	return c
}

func (c council) set(service hsm.Service, value int, as []hsm.Approval) error {
	_, err := c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeQuorumValue, Name: string(service), Value: strconv.Itoa(value), Approvals: as})
	return err
}

// make makes a user with approvals.
func (c council) make(name string, as []hsm.Approval) error {
	_, err := c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleCryptoUser, Password: password(name), Approvals: as})
	return err
}

func testQuorumUsers(w *world) {
	c := w.council()
	w.ok(c.make("before", nil))
	w.ok(c.set(hsm.ServiceUser, 2, nil))
	w.equal("values", c.info().Quorum, hsm.QuorumValues{User: 2, Quorum: 1, Cluster: 1})
	w.want("without a token", c.make("carol", nil), hsm.ErrQuorum)
	for _, ch := range []hsm.Change{
		{Kind: hsm.ChangeUserDelete, User: "before"}, {Kind: hsm.ChangeUserPassword, User: alice, Password: password(bob)},
		{Kind: hsm.ChangeUserUnlock, User: alice}, {Kind: hsm.ChangeUserQuorum, User: "third"}, {Kind: hsm.ChangeUserMFA, User: "third"},
	} {
		_, err := c.chair.Change(c.ctx(), ch)
		w.want(string(ch.Kind), err, hsm.ErrQuorum)
	}
	w.must(c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserPassword, User: adminName, Password: password(adminName)})) // one's own
	w.must(c.user(alice).Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserPassword, User: alice, Password: password(alice)}))

	token := c.token(c.chair, hsm.ServiceUser, 0)
	w.want("nobody signed", c.make("carol", w.approve(token)), hsm.ErrQuorum)
	w.want("one of two", c.make("carol", w.approve(token, c.keys[0])), hsm.ErrQuorum)
	w.want("the same twice", c.make("carol", w.approve(token, c.keys[1], c.keys[1])), hsm.ErrQuorum)
	stranger := w.signer("second")
	w.want("another key", c.make("carol", w.approve(token, c.keys[0], stranger)), hsm.ErrQuorum)
	cu := c.registered(c.user(alice), alice)
	w.want("a crypto user", c.make("carol", w.approve(token, c.keys[0], cu)), hsm.ErrQuorum)
	nobody := w.signer("nobody_known")
	w.want("an unknown user", c.make("carol", w.approve(token, c.keys[0], nobody)), hsm.ErrQuorum)
	w.want("a user that exists, which does not use the token up", c.make(bob, w.approve(token, c.keys[0], c.keys[2])), hsm.ErrExist)
	w.ok(c.make("carol", w.approve(token, c.keys[0], c.keys[2])))
	w.want("the token again", c.make("dave", w.approve(token, c.keys[0], c.keys[2])), hsm.ErrQuorum)
}

func testQuorumTokens(w *world) {
	c := w.council()
	other := w.empty()
	w.ok(c.set(hsm.ServiceUser, 2, nil))
	w.sync(c.node, other)
	both := c.keys[:2]

	token := c.token(c.chair, hsm.ServiceUser, 0)
	_, err := other.admin().Change(w.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "carol", Role: hsm.RoleCryptoUser, Password: password("carol"), Approvals: w.approve(token, both...)})
	w.want("on another HSM", err, hsm.ErrQuorum)
	_, err = c.login(hsm.RoleAdmin, "second").Change(w.Context(), hsm.Change{Kind: hsm.ChangeUserDelete, User: bob, Approvals: w.approve(token, both...)})
	w.want("by another user", err, hsm.ErrQuorum)
	newer := c.token(c.chair, hsm.ServiceUser, 0)
	w.want("after another was issued", c.make("carol", w.approve(token, both...)), hsm.ErrQuorum)
	wrong := c.token(c.chair, hsm.ServiceQuorum, 0)
	w.want("of another service", c.make("carol", w.approve(wrong, both...)), hsm.ErrQuorum)
	changed := slices.Clone(newer)
	changed[len(changed)-40] ^= 1
	w.want("changed", c.make("carol", w.approve(changed, both...)), hsm.ErrQuorum)
	w.want("no token", c.make("carol", []hsm.Approval{{Token: []byte("x")}}), hsm.ErrQuorum)
	foreign, err := hsm.ParseQuorumToken(newer)
	w.ok(err)
	foreign.Cluster++
	w.want("of another cluster", c.make("carol", w.approve(foreign.Encode(), both...)), hsm.ErrQuorum)
	w.advance(hsm.TokenLife)
	w.want("expired", c.make("carol", w.approve(newer, both...)), hsm.ErrQuorum)
	newer = c.token(c.chair, hsm.ServiceUser, 0)
	w.must(c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserPassword, User: adminName, Password: password(adminName)}))
	w.want("of before a change of password", c.make("carol", w.approve(newer, both...)), hsm.ErrQuorum)

	_, err = c.user(alice).Token(c.ctx(), hsm.ServiceUser, 0)
	w.want("a crypto user asks for an admin's token", err, hsm.ErrDenied)
	_, err = c.nobody().Token(c.ctx(), hsm.ServiceUser, 0)
	w.want("nobody asks", err, hsm.ErrDenied)
	_, err = c.chair.Token(c.ctx(), "registration", 0)
	w.want("an unknown service", err, hsm.ErrInvalid)
	_, err = c.chair.Token(c.ctx(), hsm.ServiceUser, 5)
	w.want("a key where there is none", err, hsm.ErrInvalid)
}

// testQuorumTokenList: tokens of all users are listed until they are spent, void or
// withdrawn, with what the HSM has seen of approvals; a crypto user learns of no key
// that is not its own to see.
func testQuorumTokenList(w *world) {
	c := w.council()
	w.ok(c.set(hsm.ServiceUser, 2, nil))
	request := aesRequest("sign")
	request.Attributes["use-key-quorum-value"] = "1"
	s := c.user(alice)
	key := c.create(s, request)[0].Ref
	listed := func(by hsm.Session) []hsm.TokenInfo {
		w.Helper()
		all, err := by.Tokens(c.ctx())
		w.ok(err)
		return all
	}
	w.equal("tokens at first", len(listed(c.chair)), 0)
	ours := c.token(c.chair, hsm.ServiceUser, 0)
	w.advance(time.Minute)
	theirs := c.token(s, hsm.ServiceKeyUsage, key)
	a := hsm.TokenInfo{Digest: hsm.TokenDigest(ours), Service: hsm.ServiceUser, Requester: adminName, Required: 2, Left: hsm.TokenLife - time.Minute}
	b := hsm.TokenInfo{Digest: hsm.TokenDigest(theirs), Service: hsm.ServiceKeyUsage, Key: key, Requester: alice, Required: 1, Left: hsm.TokenLife}
	w.equal("an admin's list", listed(c.chair), []hsm.TokenInfo{a, b})
	w.equal("the owner's list", listed(s), []hsm.TokenInfo{a, b})
	hidden := b
	hidden.Key = 0
	w.equal("the list of another crypto user", listed(c.user(bob)), []hsm.TokenInfo{a, hidden})

	w.want("one of two", c.make("carol", w.approve(ours, c.keys[0])), hsm.ErrQuorum)
	a.Approvals = 1
	w.equal("after one approval", listed(c.chair), []hsm.TokenInfo{a, b})
	w.want("a bad one", c.make("carol", w.approve(ours, c.keys[0], c.keys[0])), hsm.ErrQuorum)
	w.want("enough, for what is not done", c.make(bob, w.approve(ours, c.keys[:2]...)), hsm.ErrExist)
	a.Approvals = 2
	w.equal("after two approvals", listed(c.chair), []hsm.TokenInfo{a, b})
	w.ok(c.make("carol", w.approve(ours, c.keys[:2]...)))
	w.equal("after it was spent", listed(c.chair), []hsm.TokenInfo{b})
	w.must(s.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserPassword, User: alice, Password: password(alice)}))
	w.equal("after a change of password", len(listed(c.chair)), 0)
	c.token(c.chair, hsm.ServiceUser, 0)
	w.advance(hsm.TokenLife)
	w.equal("after its time", len(listed(c.chair)), 0)
}

// testQuorumTokenDelete: an admin withdraws its own tokens, or all.
func testQuorumTokenDelete(w *world) {
	c := w.council()
	w.ok(c.set(hsm.ServiceUser, 2, nil))
	second := c.login(hsm.RoleAdmin, "second")
	remove := func(by hsm.Session, all bool, want int) {
		w.Helper()
		n, err := by.DeleteTokens(c.ctx(), all)
		w.ok(err)
		w.equal("deleted", n, want)
	}
	remove(c.chair, true, 0)
	ours := c.token(c.chair, hsm.ServiceUser, 0)
	c.token(second, hsm.ServiceUser, 0)
	c.token(second, hsm.ServiceQuorum, 0)
	remove(second, false, 2)
	w.ok(c.make("carol", w.approve(ours, c.keys[:2]...)))
	ours = c.token(c.chair, hsm.ServiceUser, 0)
	remove(second, true, 1)
	w.want("a deleted token", c.make("dave", w.approve(ours, c.keys[:2]...)), hsm.ErrQuorum)
	_, err := c.user(alice).DeleteTokens(c.ctx(), false)
	w.want("by a crypto user", err, hsm.ErrDenied)
}

// testQuorumTimeouts: how long tokens are good is the lineage's, for those issued from
// then on; and one that was approved is good for so long, and no longer than it was issued for.
func testQuorumTimeouts(w *world) {
	c := w.council()
	w.equal("timeouts at first", c.info().Timeouts, hsm.QuorumTimeouts{Generated: hsm.TokenLife, Approved: hsm.TokenLife})
	w.ok(c.set(hsm.ServiceUser, 2, nil))
	set := func(name, value string) error {
		_, err := c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeQuorumTimeout, Name: name, Value: value})
		return err
	}
	for _, value := range []string{"", "0", "-1", "1.5", "15m", "86401", "18446744073709551617", " 60"} {
		w.want("timeout "+value, set(hsm.TimeoutGenerated, value), hsm.ErrInvalid)
	}
	w.want("of something else", set("user", "60"), hsm.ErrInvalid)
	before := c.token(c.chair, hsm.ServiceUser, 0)
	w.ok(set(hsm.TimeoutGenerated, "900"))
	w.ok(set(hsm.TimeoutApproved, "60"))
	other := w.empty()
	w.sync(c.node, other)
	want := hsm.QuorumTimeouts{Generated: 15 * time.Minute, Approved: time.Minute}
	w.equal("timeouts", c.info().Timeouts, want)
	w.equal("timeouts elsewhere", other.info().Timeouts, want)
	w.equal("values", c.info().Quorum, hsm.QuorumValues{User: 2, Quorum: 1, Cluster: 1})

	w.advance(hsm.TokenLife)
	w.want("one issued before", c.make("carol", w.approve(before, c.keys[:2]...)), hsm.ErrQuorum)
	token := c.token(c.chair, hsm.ServiceUser, 0)
	w.advance(hsm.TokenLife)
	w.ok(c.make("carol", w.approve(token, c.keys[:2]...)))
	token = c.token(c.chair, hsm.ServiceUser, 0)
	w.want("approved, and not done", c.make(bob, w.approve(token, c.keys[:2]...)), hsm.ErrExist)
	w.advance(30 * time.Second)
	w.want("approved again, which does not prolong it", c.make(bob, w.approve(token, c.keys[:2]...)), hsm.ErrExist)
	w.advance(30 * time.Second)
	w.want("approved too long ago", c.make("dave", w.approve(token, c.keys[:2]...)), hsm.ErrQuorum)
	w.ok(set(hsm.TimeoutGenerated, "1"))
	token = c.token(c.chair, hsm.ServiceUser, 0)
	w.advance(time.Second)
	w.want("after a second", c.make("dave", w.approve(token, c.keys[:2]...)), hsm.ErrQuorum)
}

func testQuorumValues(w *world) {
	c := w.council()
	w.want("more than can approve", c.set(hsm.ServiceUser, 4, nil), hsm.ErrDenied)
	for _, v := range []int{-1, 0, 9} {
		w.want("a value out of range", c.set(hsm.ServiceUser, v, nil), hsm.ErrInvalid)
	}
	w.want("of a key's service", c.set(hsm.ServiceKeyUsage, 2, nil), hsm.ErrInvalid)
	_, err := c.user(alice).Change(c.ctx(), hsm.Change{Kind: hsm.ChangeQuorumValue, Name: "user", Value: "1"})
	w.want("by a crypto user", err, hsm.ErrDenied)
	w.ok(c.set(hsm.ServiceUser, 3, nil))
	w.want("lowering it alone, though the quorum service takes nobody", c.set(hsm.ServiceUser, 1, nil), hsm.ErrQuorum)
	approvals := func(by ...signer) []hsm.Approval { return w.approve(c.token(c.chair, hsm.ServiceQuorum, 0), by...) }
	w.want("by two of three", c.set(hsm.ServiceUser, 1, approvals(c.keys[:2]...)), hsm.ErrQuorum)

	byAll := w.approve(c.token(c.chair, hsm.ServiceUser, 0), c.keys...)
	_, err = c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserDelete, User: "third", Approvals: byAll})
	w.want("deleting one of the last who can approve", err, hsm.ErrDenied)
	_, err = c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserQuorum, User: "third", Approvals: byAll})
	w.want("taking the key of one of the last", err, hsm.ErrDenied)
	w.ok(c.set(hsm.ServiceUser, 2, approvals(c.keys...)))
	token := c.token(c.chair, hsm.ServiceUser, 0)
	w.must(c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserDelete, User: "third", Approvals: w.approve(token, c.keys...)}))
	token = c.token(c.chair, hsm.ServiceUser, 0)
	w.want("a signer who was deleted", c.make("carol", w.approve(token, c.keys[0], c.keys[2])), hsm.ErrQuorum)
	w.ok(c.make("third", w.approve(token, c.keys[:2]...)))
	token = c.token(c.chair, hsm.ServiceUser, 0)
	w.want("a signer of the same name", c.make("carol", w.approve(token, c.keys[0], c.keys[2])), hsm.ErrQuorum)
}

func testSignerRegistration(w *world) {
	n := w.node()
	s, key := n.user(alice), w.signer(alice)
	change := func(by hsm.Session, c hsm.Change) error {
		_, err := by.Change(n.ctx(), c)
		return err
	}
	good := w.registration(key, hsm.ChangeUserQuorum, hsm.SignQuorum)
	w.want("for somebody else", change(n.user(bob), good), hsm.ErrDenied)
	w.want("by an admin", change(n.admin(), good), hsm.ErrDenied)
	unproved := good
	unproved.Proof = w.signed(w.signer(alice), []byte("something"))
	w.want("without possession", change(s, unproved), hsm.ErrDenied)
	w.want("with the proof of another use", change(s, w.registration(key, hsm.ChangeUserQuorum, hsm.SignLogin)), hsm.ErrDenied)
	broken := good
	broken.Public = broken.Public[:20]
	w.want("a broken key", change(s, broken), hsm.ErrInvalid)
	w.ok(change(s, good))
	w.ok(change(s, good)) // again
	w.want("another key", change(s, w.registration(w.signer(alice), hsm.ChangeUserQuorum, hsm.SignQuorum)), hsm.ErrExist)
	stolen := key
	stolen.user = bob
	w.want("the key of somebody else", change(n.user(bob), w.registration(stolen, hsm.ChangeUserQuorum, hsm.SignQuorum)), hsm.ErrExist)
	w.want("taking away one's own", change(s, hsm.Change{Kind: hsm.ChangeUserQuorum, User: alice}), hsm.ErrDenied)

	other := w.empty()
	w.sync(n, other)
	for _, at := range []*node{n, other} {
		users, err := at.user(alice).Users(n.ctx())
		w.ok(err)
		i := slices.IndexFunc(users, func(u hsm.UserInfo) bool { return u.Name == alice })
		if !users[i].Quorum || users[i].MFA {
			w.Errorf("user list shows %+v", users[i])
		}
	}
	w.ok(change(n.admin(), hsm.Change{Kind: hsm.ChangeUserQuorum, User: alice}))
	w.ok(change(s, w.registration(w.signer(alice), hsm.ChangeUserQuorum, hsm.SignQuorum)))
}

func testQuorumKeys(w *world) {
	n := w.node()
	s := n.user(alice)
	a, b := n.registered(s, alice), n.registered(n.user(bob), bob)
	request := aesRequest("encrypt", "decrypt", "sign", "derive", "wrap", "unwrap")
	request.Attributes["use-key-quorum-value"], request.Attributes["manage-key-quorum-value"] = "2", "2"
	_, err := s.Create(n.ctx(), newOp(), request)
	w.want("more than it has users", err, hsm.ErrInvalid)
	request.Shares = []string{bob}
	session := request
	session.Token = false
	_, err = s.Create(n.ctx(), newOp(), session)
	w.want("a session key", err, hsm.ErrInvalid)
	key := n.create(s, request)[0]
	w.equal("value", key.Attributes["use-key-quorum-value"], "2")

	use := hsm.Use{Kind: hsm.UseMAC, Key: key.Ref, Params: hsm.Params{Mechanism: "hmac", Hash: "sha256"}, Data: []byte("data")}
	use.Params = hsm.Params{Mechanism: "aes-cmac"}
	_, err = s.Use(n.ctx(), use)
	w.want("use alone", err, hsm.ErrQuorum)
	token := n.token(s, hsm.ServiceKeyUsage, key.Ref)
	use.Approvals = w.approve(token, a)
	_, err = s.Use(n.ctx(), use)
	w.want("one of two", err, hsm.ErrQuorum)
	use.Approvals = w.approve(token, a, b)
	bad := use
	bad.Params.Mechanism = "rot13"
	_, err = s.Use(n.ctx(), bad)
	w.want("what does not exist, which does not use the token up", err, hsm.ErrInvalid)
	_, err = s.Use(n.ctx(), use)
	w.ok(err)
	_, err = s.Use(n.ctx(), use)
	w.want("the token again", err, hsm.ErrQuorum)

	use.Approvals = w.approve(n.token(s, hsm.ServiceKeyManagement, key.Ref), a, b)
	_, err = s.Use(n.ctx(), use)
	w.want("a token of another service", err, hsm.ErrQuorum)
	for what, r := range map[string]hsm.CreateRequest{
		"derive": {Method: hsm.MethodDerive, Token: true, Type: "aes", Size: 32, Key: key.Ref, Params: hsm.Params{Mechanism: "sp800-108-counter"}},
		"copy":   {Method: hsm.MethodCopy, Token: true, Key: key.Ref},
		"unwrap": {Method: hsm.MethodUnwrap, Token: true, Type: "aes", Key: key.Ref, Data: hsm.NewSecret([]byte("wrapped key with approval")), Params: hsm.Params{Mechanism: "aes-kwp"}},
	} {
		_, err := s.Create(n.ctx(), newOp(), r)
		w.want(what, err, hsm.ErrQuorum)
	}
	free := n.aes(s, "wrap", "unwrap")
	wrap := hsm.Use{Kind: hsm.UseWrap, Key: free.Ref, Payload: key.Ref, Params: hsm.Params{Mechanism: "aes-kwp"}}
	_, err = s.Use(n.ctx(), wrap)
	w.want("wrap of it", err, hsm.ErrQuorum)
	wrap.Approvals = w.approve(n.token(s, hsm.ServiceKeyManagement, key.Ref), a, b)
	_, err = s.Use(n.ctx(), wrap)
	w.ok(err)
	wrap.Key, wrap.Payload = key.Ref, free.Ref
	_, err = s.Use(n.ctx(), wrap)
	w.want("wrap with it", err, hsm.ErrQuorum)
	w.quorumKeyChanges(n, s, key.Ref, a, b)
}

// quorumKeyChanges changes a key that takes two approvals for that.
func (w *world) quorumKeyChanges(n *node, s hsm.Session, ref hsm.KeyRef, by ...signer) {
	w.Helper()
	label := hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "label", Value: "new"}
	for _, c := range []hsm.Change{label, {Kind: hsm.ChangeUnshare, Ref: ref, User: bob}, {Kind: hsm.ChangeAttribute, Ref: ref, Name: "use-key-quorum-value", Value: "0"}} {
		_, err := s.Change(n.ctx(), c)
		w.want(string(c.Kind)+" "+c.Name, err, hsm.ErrQuorum)
	}
	lower := hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "use-key-quorum-value", Value: "0", Approvals: w.approve(n.token(s, hsm.ServiceKeyManagement, ref), by...)}
	_, err := s.Change(n.ctx(), lower)
	w.want("lowering the value", err, hsm.ErrAttribute)
	label.Approvals = lower.Approvals // not used up
	w.must(s.Change(n.ctx(), label))

	unshare := hsm.Change{Kind: hsm.ChangeUnshare, Ref: ref, User: bob, Approvals: w.approve(n.token(s, hsm.ServiceKeyManagement, ref), by...)}
	token := n.token(s, hsm.ServiceKeyUsage, ref)
	w.must(s.Change(n.ctx(), unshare))
	_, err = s.Use(n.ctx(), hsm.Use{Kind: hsm.UseMAC, Key: ref, Params: hsm.Params{Mechanism: "aes-cmac"}, Data: []byte("data"), Approvals: w.approve(token, by...)})
	w.want("approved by who has the key no more", err, hsm.ErrQuorum)
	_, err = n.user(bob).Token(n.ctx(), hsm.ServiceKeyUsage, ref)
	w.want("a token for a key of others", err, hsm.ErrNotFound)
}

// testQuorumCluster: with the value of the cluster service, an admin alone changes no
// settings, so does not become a custodian, invites nobody and revokes nothing.
func testQuorumCluster(w *world) {
	c := w.council()
	settings := func(as []hsm.Approval) error {
		_, err := c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1, Custodians: []string{"age1mine"}, Threshold: 1}, Approvals: as})
		return err
	}
	w.must(c.hsm().Change(c.ctx(), hsm.Change{Kind: hsm.ChangeMember, Member: &hsm.Member{ID: c.id, Name: "hsm-1", Address: "127.0.0.1:1"}}))
	w.ok(settings(nil))
	w.ok(c.set(hsm.ServiceCluster, 2, nil))
	w.equal("values", c.info().Quorum, hsm.QuorumValues{User: 1, Quorum: 1, Cluster: 2})
	invite := hsm.Change{Kind: hsm.ChangeInvite, Invite: &hsm.Invite{ID: hsm.InviteID{1}, Key: [32]byte{1}, Expires: w.now().Add(time.Hour), Voters: []hsm.HSMID{c.id}}}
	revoke := hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: "appliance", Name: "backup", Until: w.now()}}
	w.want("settings", settings(nil), hsm.ErrQuorum)
	for _, ch := range []hsm.Change{invite, revoke} {
		_, err := c.chair.Change(c.ctx(), ch)
		w.want(string(ch.Kind), err, hsm.ErrQuorum)
	}
	w.ok(c.make("carol", nil)) // is of another service
	w.want("lowering it alone", c.set(hsm.ServiceCluster, 1, nil), hsm.ErrQuorum)
	other := w.approve(c.token(c.chair, hsm.ServiceUser, 0), c.keys...)
	w.want("a token of another service", settings(other), hsm.ErrQuorum)
	token := c.token(c.chair, hsm.ServiceCluster, 0)
	w.want("one of two", settings(w.approve(token, c.keys[0])), hsm.ErrQuorum)
	w.ok(settings(w.approve(token, c.keys[:2]...)))
	w.want("the token again", settings(w.approve(token, c.keys[:2]...)), hsm.ErrQuorum)
	for _, ch := range []hsm.Change{invite, revoke} {
		ch.Approvals = w.approve(c.token(c.chair, hsm.ServiceCluster, 0), c.keys[1:]...)
		_, err := c.chair.Change(c.ctx(), ch)
		w.ok(err)
	}
	_, err := c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserDelete, User: "third"})
	w.ok(err) // two are left who can approve
	_, err = c.chair.Change(c.ctx(), hsm.Change{Kind: hsm.ChangeUserDelete, User: "second"})
	w.want("one of the last who can approve", err, hsm.ErrDenied)
	_, err = c.user(alice).Token(c.ctx(), hsm.ServiceCluster, 0)
	w.want("a token for a crypto user", err, hsm.ErrDenied)
}
