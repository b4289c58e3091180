package clone

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/keytest"
)

// answer is what a key of region one made of the question, and how region two's
// copy has to stand by it.
type answer struct {
	key   hsm.KeyInfo
	user  string
	given []byte
	how   keytest.Test
}

// askOne collects an answer of every key of every user of region one.
func (d *drill) askOne(ctx context.Context) error {
	info, err := d.one.auto.Info(ctx)
	if err != nil {
		return err
	}
	d.answers = nil
	asked := d.tally(int(info.Keys))
	for name, c := range d.one.users {
		if err := d.askUser(ctx, name, c, asked); err != nil {
			return err
		}
	}
	if len(d.answers) == 0 {
		return fmt.Errorf("%w: region one has no keys", hsm.ErrNotFound)
	}
	return nil
}

func (d *drill) askUser(ctx context.Context, name string, c *cluster.Cluster, asked func()) error {
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
		how, ok := keytest.For(k.KeyInfo)
		if !ok {
			return fmt.Errorf("%w: no test for %s %s %s", hsm.ErrInvalid, k.Class, k.Type, k.Label)
		}
		g.Go(func() error {
			given, err := how.Ask(gctx, c, k.KeyInfo)
			if err != nil {
				return fmt.Errorf("use %s %s: %w", k.Class, k.Label, err)
			}
			asked()
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
	err := a.how.Check(ctx, one.users[a.user], user, a.key, a.given)
	if err != nil {
		return fmt.Errorf("%s %s %s: %w", a.key.Class, a.key.Ref, a.key.Label, err)
	}
	return nil
}
