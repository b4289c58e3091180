package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestALaterChangeWins over one that was acknowledged before, wherever the two were
// made, though the first HSM's clock is minutes ahead and the second had not heard
// of it: a password, which is sealed, and a label.
func TestALaterChangeWins(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cred   Credential
		change func(key hsm.KeyRef, text string) hsm.Change
		check  func(b *box, key hsm.KeyRef) error
	}{
		"label": {asUser, func(key hsm.KeyRef, text string) hsm.Change {
			return hsm.Change{Kind: hsm.ChangeAttribute, Ref: key, Name: "label", Value: text}
		}, func(b *box, key hsm.KeyRef) error {
			k, err := b.peer().Key(b.w.t.Context(), key)
			if err == nil && k.Label != "the second" {
				err = fmt.Errorf("label %q", k.Label)
			}
			return err
		}},
		"password": {asAdmin, func(_ hsm.KeyRef, text string) hsm.Change {
			return hsm.Change{Kind: hsm.ChangeUserPassword, User: userName, Role: hsm.RoleCryptoUser, Password: secret(text)}
		}, func(b *box, _ hsm.KeyRef) error { return b.login("the second") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, odd, _ := skewed(t, 4*time.Minute, 2, tc.cred)
			made, err := w.open(asUser).Create(t.Context(), aes(), Policy{})
			if err != nil {
				t.Fatal(err)
			}
			key := made.Keys[0].Ref
			w.sync()
			change := func(on *box, text string) {
				t.Helper()
				c := w.open(tc.cred) // that knows of nothing
				c.muster(t.Context())
				defer c.forceFirst(on)()
				changed, err := c.Change(t.Context(), tc.change(key, text))
				if err != nil || changed.Results[0].HSM != on.member.ID {
					t.Fatalf("%+v, %v; want it made on %s", changed, err, on.member.Name)
				}
			}
			unheard := w.boxes[2]
			unheard.away.Store(true)
			change(odd, "the first")
			unheard.away.Store(false)
			change(unheard, "the second")
			w.sync()
			for _, b := range w.boxes {
				if err := tc.check(b, key); err != nil {
					t.Errorf("%s: not as it was acknowledged last: %v", b.member.Name, err)
				}
			}
		})
	}
}

func TestLatestPlausible(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(1_800_000_000, 0).Add(d) }
	info := func(wall, clock time.Duration) hsm.Info {
		return hsm.Info{Time: at(wall), Clock: uint64(at(clock).UnixMilli()) << 16}
	}
	minutes := func(n int) time.Duration { return time.Duration(n) * time.Minute }
	for name, c := range map[string]struct {
		infos   []hsm.Info
		members int
		want    time.Duration
	}{
		"the latest":                              {[]hsm.Info{info(0, 0), info(minutes(4), minutes(4)), info(0, minutes(1))}, 3, minutes(4)},
		"one that nobody else takes":              {[]hsm.Info{info(0, 0), info(minutes(10), minutes(10)), info(0, minutes(1))}, 3, minutes(1)},
		"one that another has taken":              {[]hsm.Info{info(0, 0), info(minutes(10), minutes(10)), info(0, minutes(10))}, 3, minutes(10)},
		"one that an HSM may have that is away":   {[]hsm.Info{info(0, 0), info(minutes(10), minutes(10))}, 3, minutes(10)},
		"one of before the clock was set back":    {[]hsm.Info{info(0, minutes(10)), info(0, minutes(10)), info(0, 0)}, 3, minutes(10)},
		"software that does not tell: the others": {[]hsm.Info{{Time: at(0)}, info(0, minutes(2))}, 2, minutes(2)},
	} {
		if got := latestPlausible(c.infos, c.members); got != uint64(at(c.want).UnixMilli())<<16 {
			t.Errorf("%s: %s", name, (hsm.Stamp{Time: got}).Wall())
		}
	}
}
