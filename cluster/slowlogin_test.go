package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
)

// slowLogins is an HSM that answers, and takes its time over a password.
type slowLogins struct {
	hsm.Module
	takes time.Duration
}

func (m slowLogins) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	select {
	case <-time.After(m.takes):
		return m.Module.Login(ctx, role, name, password)
	case <-ctx.Done():
		return nil, hsm.Secret{}, ctx.Err()
	}
}

// openSlow opens a cluster, with the times of the program, whose HSMs take that long to log in.
func (w *world) openSlow(takes time.Duration) (*Cluster, error) {
	dial := w.dialer(hsm.RoleNone)
	return Open(w.t.Context(), w.profile(), asUser, WithDialer(func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
		module, err := dial(ctx, m)
		return slowLogins{module, takes}, err
	}))
}

// TestASlowLoginGetsLonger: an HSM whose machine is too busy to log anybody in within the
// time of one attempt begins anew with each; it is given more time, within bounds.
func TestASlowLoginGetsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, false)
		c, err := w.openSlow(defaultTiming.connect + 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		began := time.Now()
		if _, err := w.openSlow(time.Hour); !errors.Is(err, ErrNoHSM) || !strings.Contains(err.Error(), errNoAnswer.Error()) {
			t.Errorf("%v, want ErrNoHSM", err)
		}
		if took := time.Since(began); took > defaultTiming.starting+2*time.Second {
			t.Errorf("it gave up after %s", took)
		}
	})
}

// TestOpenWaitsForAnHSMThatIsThere and takes longer than one attempt to answer at all.
func TestOpenWaitsForAnHSMThatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, false)
		dial, began := w.dialer(hsm.RoleNone), time.Now()
		c, err := Open(t.Context(), w.profile(), asUser, WithDialer(func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
			if time.Since(began) < defaultTiming.starting/2 {
				time.Sleep(5 * time.Second)
				return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, rpc.ErrSlow)
			}
			return dial(ctx, m)
		}))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
