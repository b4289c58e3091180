package soft

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ahead is a change of a label that is stamped by clocks minutes ahead.
func ahead(c *clock, ref hsm.KeyRef, by time.Duration) hsm.Change {
	return hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "label", Value: by.String(), After: uint64(c.Now().Add(by).UnixMilli()) << 16}
}

// TestTheClockOutlivesItsHSM: an HSM that dies and is started again says that it has seen
// stamps as late as any that it acknowledged, of changes, of what others brought, and
// of what is prepared. Otherwise a change of somebody who asked it would lose against
// one that was acknowledged before.
func TestTheClockOutlivesItsHSM(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, c *clock, h *HSM, ref hsm.KeyRef){
		"a change": func(t *testing.T, c *clock, h *HSM, ref hsm.KeyRef) {
			must[hsm.MaskedObject](t)(login(t, h, "alice").Change(t.Context(), ahead(c, ref, 4*time.Minute)))
		},
		"an insertion": func(t *testing.T, c *clock, h *HSM, _ hsm.KeyRef) {
			must[hsm.Inserted](t)(peer(t, h).Insert(t.Context(), each([]hsm.MaskedObject{handmade(t, h.keys(), "alice", c.Now().Add(4*time.Minute))})))
		},
		"settings": func(t *testing.T, c *clock, h *HSM, ref hsm.KeyRef) {
			s := peer(t, h)
			must[hsm.MaskedObject](t)(s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 3}, After: ahead(c, ref, 4*time.Minute).After}))
		},
		"one second after the other": func(t *testing.T, c *clock, h *HSM, ref hsm.KeyRef) {
			for by := 3 * time.Minute; by < 4*time.Minute; by += 700 * time.Millisecond {
				must[hsm.MaskedObject](t)(login(t, h, "alice").Change(t.Context(), ahead(c, ref, by)))
			}
		},
		"many at once": func(t *testing.T, c *clock, h *HSM, ref hsm.KeyRef) {
			s := login(t, h, "alice")
			refs := []hsm.KeyRef{ref}
			for range 7 {
				refs = append(refs, createAs(t, s, aesRequest).Ref)
			}
			var g sync.WaitGroup
			for i, ref := range refs {
				g.Go(func() {
					for n := range 20 {
						if _, err := s.Change(t.Context(), ahead(c, ref, time.Minute+time.Duration(n*8+i)*time.Second)); err != nil && n == 0 {
							t.Error(err)
						}
					}
				})
			}
			g.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs, c := vfs.NewCrashableMem(), newClock()
			o := testOptions(fs)
			o.Now = c.Now
			h := withUser(t, open(t, o))
			change(t, c, h, createAs(t, login(t, h, "alice"), aesRequest).Ref)
			want := h.clock.Latest()

			o.FS = fs.CrashClone(vfs.CrashCloneCfg{}) // only what was synced is left
			again := open(t, o)
			if got := again.clock.Latest(); got < want || got > want+latestStep {
				t.Errorf("the clock is %d after a restart, want %d and less than a second more", got, want)
			}
			checkStore(t, again)
			if rows := latestRows(t, again); len(rows) != 1 {
				t.Errorf("%d rows of a clock", len(rows))
			}
		})
	}
}

// TestAClockThatWasSetBack more than others tolerate starts at the time of day, and is
// later than all once that is right again.
func TestAClockThatWasSetBack(t *testing.T) {
	fs, c := vfs.NewMem(), newClock()
	o := testOptions(fs)
	o.Now = c.Now
	h := withUser(t, open(t, o))
	ref := createAs(t, login(t, h, "alice"), aesRequest).Ref
	must[hsm.MaskedObject](t)(login(t, h, "alice").Change(t.Context(), ahead(c, ref, 4*time.Minute)))
	want := h.clock.Latest()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	c.advance(-time.Hour)
	h = open(t, o)
	createAs(t, login(t, h, "alice"), aesRequest)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	c.advance(time.Hour)
	if got := open(t, o).clock.Latest(); got < want {
		t.Errorf("the clock is %d, want %d", got, want)
	}
}

func latestRows(t *testing.T, h *HSM) (rows [][]byte) {
	t.Helper()
	err := scan(h.store.db, []byte{prefixLatest}, func(key, _ []byte) (bool, error) {
		rows = append(rows, bytes.Clone(key))
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestLateSettingsLose: a change of settings, of a member or of a quorum value that an
// HSM makes late is stamped as its caller had it stamped, and refused where a later one
// is known.
func TestLateSettingsLose(t *testing.T) {
	id := hsm.NewHSMID()
	member := func(address string) *hsm.Member { return &hsm.Member{ID: id, Name: "hsm-9", Address: address} }
	for name, tt := range map[string]struct {
		first, late, now hsm.Change
		ref              hsm.KeyRef
		scope            hsm.Scope
	}{
		"settings": {
			hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 2}}, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1}},
			hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 3}}, settingsRef, hsm.ScopeLineage,
		},
		"a member": {
			hsm.Change{Kind: hsm.ChangeMember, Member: member("127.0.0.1:1")}, hsm.Change{Kind: hsm.ChangeMember, Member: member("127.0.0.1:2")},
			hsm.Change{Kind: hsm.ChangeMember, Member: member("127.0.0.1:3")}, hsm.MemberRef(id), hsm.ScopeCluster,
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(vfs.NewMem())
			here := withUser(t, open(t, o))
			there := testOptions(vfs.NewMem())
			there.Keyring, there.ID, there.Cluster = o.Keyring, o.ID+1, o.Cluster
			other := open(t, there)
			admin := func(h *HSM) *session { return h.newSession(hsm.Principal{Role: hsm.RoleAdmin, Name: "root"}) }
			first := must[hsm.MaskedObject](t)(admin(here).Change(t.Context(), tt.first))
			put := func(m hsm.MaskedObject) {
				t.Helper()
				must[hsm.Inserted](t)(peer(t, other).Scoped(tt.scope).Insert(t.Context(), each([]hsm.MaskedObject{m})))
			}
			put(first)
			heard := here.clock.Latest()
			tt.late.After, tt.now.After = heard, heard+10

			changed := must[hsm.MaskedObject](t)(admin(here).Change(t.Context(), tt.now))
			_, err := admin(here).Change(t.Context(), tt.late)
			wantErr(t, "a late change where a later one is", err, hsm.ErrLate)

			must[hsm.MaskedObject](t)(admin(other).Change(t.Context(), tt.late))
			put(changed)
			for m, err := range peer(t, other).Scoped(tt.scope).Extract(t.Context(), slices.Values([]hsm.KeyRef{tt.ref})) {
				if err != nil || m.Object != changed.Object {
					t.Errorf("%v; what was changed later is not what the HSM holds after both", err)
				}
			}
		})
	}
}
