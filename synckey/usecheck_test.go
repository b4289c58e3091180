package synckey

import (
	"context"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// create makes real keys of all types as alice.
func create(t *testing.T, c *cluster.Cluster) (made int) {
	t.Helper()
	yes := func(names ...string) map[string]string {
		m := map[string]string{}
		for _, n := range names {
			m[n] = "true"
		}
		return m
	}
	for _, r := range []hsm.CreateRequest{
		{Type: "aes", Size: 32, Attributes: yes("encrypt", "decrypt")},
		{Type: "generic-secret", Size: 32, Attributes: yes("sign")},
		{Type: "ec", Curve: "secp256r1", Attributes: yes("sign"), Public: yes("verify")},
		{Type: "ed25519", Attributes: yes("sign"), Public: yes("verify")},
		{Type: "ml-dsa", Size: 65, Attributes: yes("sign"), Public: yes("verify")},
		{Type: "ml-kem", Size: 768, Attributes: yes("derive")},
		{Type: "rsa", Size: 2048, Attributes: yes("sign"), Public: yes("verify")},
		{Type: "aes", Size: 16, Attributes: map[string]string{"encrypt": "false", "decrypt": "false", "sign": "false", "label": "no use"}},
	} {
		r.Method, r.Token = hsm.MethodGenerate, true
		done, err := c.Create(context.Background(), r, cluster.Policy{MinCopies: 1})
		if err != nil {
			t.Fatal(err)
		}
		made += len(done.Keys)
	}
	return made
}

// TestUseCheck: every applied key is used on both sides, and those that allow
// nothing are counted; the appliance uses none itself.
func TestUseCheck(t *testing.T) {
	p := newPair(t)
	alice := p.a.open("alice")
	made := create(t, alice)
	west := p.b.open("alice")
	r := p.use(t, Options{UseCheck: UseCheck{All: true, Src: alice, Dst: west}})
	if u := r.Use; u.Keys != made || u.Agreed != made-1 || u.Unusable != 1 || len(u.Failures) > 0 {
		t.Errorf("%+v", u)
	}
	create(t, alice)
	if u := p.use(t, Options{UseCheck: UseCheck{N: 4, Src: alice, Dst: west}}).Use; u.Keys != 4 || u.Agreed+u.Unusable != 4 {
		t.Errorf("a sample: %+v", u)
	}
	create(t, alice)
	if u := p.use(t, Options{UseCheck: UseCheck{N: 3}}).Use; len(u.Failures)+u.Unusable != 3 || len(u.Failures) < 2 || u.Agreed != 0 {
		t.Errorf("as the appliance: %+v", u)
	}
}

func (p *pair) use(t *testing.T, o Options) *Result {
	t.Helper()
	r, err := Run(context.Background(), p.src, p.dst, o)
	if err != nil || r.Use == nil {
		t.Fatalf("%v: %+v", err, r)
	}
	return r
}

// TestUseCheckFails: a key that is another one on the other side is named.
func TestUseCheckFails(t *testing.T) {
	p := newPair(t)
	ref := hsm.NewKeyRef()
	p.a.put([]hsm.MaskedObject{p.a.birth(ref, "alice", "one")})
	p.b.put([]hsm.MaskedObject{p.b.birth(ref, "alice", "other")})
	plan := p.stale(t, Options{UseCheck: UseCheck{All: true, Src: p.a.open("alice"), Dst: p.b.open("alice")}})
	gone := p.a.key("alice", "destroyed meanwhile")
	p.a.destroy("alice", gone)
	only := p.a.key("alice", "not there")
	for _, r := range []*region{p.a, p.b} {
		r.put([]hsm.MaskedObject{r.changeOn(0, hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "decrypt", Value: "true"})})
	}
	if err := plan.use(context.Background(), []hsm.KeyRef{only, gone, ref}); err != nil {
		t.Fatal(err)
	}
	u := plan.Result.Use
	if len(u.Failures) != 3 || u.Agreed != 0 {
		t.Fatalf("%+v", u)
	}
	for _, f := range u.Failures {
		if f.Ref == ref && !strings.HasPrefix(f.Reason, "used at the destination: ") || f.Ref == only && !strings.HasPrefix(f.Reason, "destination: ") || f.Ref == gone && !strings.HasPrefix(f.Reason, "source: ") {
			t.Errorf("%+v", f)
		}
	}
}
