package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// appointed is what an admin made of a region's settings: of the custodians, whom
// nothing else here needs.
type appointed struct {
	names  []string // that it may be: one, unless that is not known
	unsure []string // those of the last storm of which nobody knows
	round  int      // of the last change
}

// appoint changes the settings. They may be changed with one HSM left, so a change is
// certain to last only where it is on as many as the policy wants copies.
func (c *caller) appoint(ctx context.Context) {
	x, to := &c.r.custodian, fmt.Sprintf("custodian-%d-%d", c.life, c.step)
	again := x.round == c.r.round
	if x.round = c.r.round; !again {
		x.unsure = nil // all HSMs agree now
	}
	if len(x.names) == 0 {
		x.names = []string{""}
	}
	p := c.r.policy
	changed, err := c.cluster.Change(ctx, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: p.MinCopies, CheckOnUse: p.CheckOnUse, Custodians: []string{to}}})
	c.say(hsm.ChangeSettings, 0, err)
	lasts := err == nil && !c.end.isDead() && len(changed.Copies) >= max(1, p.MinCopies)
	var short *cluster.CopiesError
	switch {
	case lasts && (!again || c.heardEnough(changed)):
		x.names = append([]string{to}, x.unsure...)
	case lasts:
		x.names = append(x.names, to)
	case changed == nil && errors.As(err, &short):
	default:
		x.names, x.unsure = append(x.names, to), append(x.unsure, to)
	}
}

// settings checks an HSM's settings when all HSMs hold the same. Regions share them, by
// synckey, so where there are two it is not known whose are the later ones.
func (c *checker) settings(r *region, b *box, eye hsm.Session) {
	if len(r.custodian.names) == 0 || len(c.w.regions) > 1 {
		return
	}
	info, err := eye.Info(context.Background())
	if is := strings.Join(info.Settings.Custodians, " "); err != nil || !slices.Contains(r.custodian.names, is) {
		c.w.violate("%s: the custodian is %q, and %q were acknowledged last: %v", b.name, is, r.custodian.names, err)
	}
}
