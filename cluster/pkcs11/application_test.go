package pkcs11

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// trail is what HSMs are told for their audit logs.
type trail struct {
	mu     sync.Mutex
	events []string
}

func (r *trail) note(ctx context.Context, event string, who hsm.Principal, _ hsm.KeyRef, detail string, _ error) {
	a, ok := hsm.ApplicationOf(ctx)
	line := event + " by " + who.Name + " for nobody"
	if ok {
		line = event + " by " + who.Name + " for " + a.String()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, line+" "+detail)
}

func (r *trail) of(prefix string) (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if strings.HasPrefix(e, prefix) {
			out = append(out, e)
		}
	}
	return out
}

// TestHSMsAreToldTheApplication: two applications share one login, and every HSM's
// audit log still tells which of them made or destroyed a key, on the HSM where it
// was made and on those it was copied to.
func TestHSMsAreToldTheApplication(t *testing.T) {
	var told trail
	w := newWorldWith(t, 3, cluster.Policy{MinCopies: 3}, told.note)
	apps := []*app{}
	for i, program := range []string{"nginx", "sshd\n" + bobPIN[:3]} {
		a := newApp(w.d, Peer{PID: 100 + i, UID: 7, Program: program}, rpc.FormModule)
		t.Cleanup(a.Close)
		apps = append(apps, &app{t, a})
	}
	made := []string{"pid 100 uid 7 program nginx", "pid 101 uid 7 program sshd?bob"}
	for i, a := range apps {
		s := a.session(bobPIN)
		key := a.aes(s, attr(ck.Token, true))
		if n := len(told.of("commit by bob for " + made[i])); n < 2 {
			t.Errorf("%d HSMs were told of the commit for %q:\n%s", n, made[i], strings.Join(told.of(""), "\n"))
		}
		if n := len(told.of("create by bob for " + made[i])); n != 1 {
			t.Errorf("%d HSMs were told of the creation for %q", n, made[i])
		}
		a.call(rpc.DestroyObject, s, key)
		if n := len(told.of("destroy by bob for " + made[i])); n == 0 {
			t.Errorf("no HSM was told of the destruction for %q:\n%s", made[i], strings.Join(told.of(""), "\n"))
		}
	}
	if got := told.of("login by bob for " + made[0]); len(got) != 1 {
		t.Errorf("logins: %q", told.of("login"))
	}
	for _, e := range told.of("") {
		if strings.Contains(e, "bob-password") {
			t.Errorf("%q holds a PIN", e)
		}
	}
	// A session object ends with its application, and is still that application's.
	apps[1].aes(apps[1].open(ck.SessionRW))
	before := len(told.of("destroy by bob for " + made[1]))
	apps[1].Close()
	if after := told.of("destroy by bob for " + made[1]); len(after) <= before {
		t.Errorf("the end of an application destroyed its session objects for nobody: %q", slices.Compact(told.of("destroy")))
	}
}
