package soft

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestStartsAreRemembered: each start has an id of its own; those before are told
// with how far each had come, which is never less than what it had said.
func TestStartsAreRemembered(t *testing.T) {
	o := testOptions(vfs.NewMem())
	var said []Boot
	for range 5 {
		h := open(t, o)
		if len(said) == 0 {
			withUser(t, h)
		}
		createKey(t, login(t, h, "alice"))
		now, before := h.Boots()
		if len(before) != len(said) {
			t.Fatalf("%d starts before, want %d", len(before), len(said))
		}
		for i, b := range before {
			was := said[len(said)-1-i]
			if b.ID != was.ID || b.Writes < was.Writes {
				t.Errorf("start %d ended at %v, had said %v", i, b, was)
			}
		}
		createKey(t, login(t, h, "alice"))
		if later, _ := h.Boots(); later.ID != now.ID || later.Writes <= now.Writes {
			t.Errorf("after a change %v, before it %v", later, now)
		}
		now, _ = h.Boots()
		said = append(said, now)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnOldImageHasComeLess: a copy of the store taken while it runs, and opened
// later, shows that its last start had come less far than that start then came.
func TestAnOldImageHasComeLess(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := testOptions(fs)
	h := withUser(t, open(t, o))
	alice := login(t, h, "alice")
	createKey(t, alice)
	early, _ := h.Boots()
	image := fs.CrashClone(vfs.CrashCloneCfg{})
	for range 3 {
		createKey(t, alice)
	}
	late, _ := h.Boots()
	o.FS = image
	_, before := open(t, o).Boots()
	if len(before) != 1 || before[0].ID != late.ID || before[0].Writes < early.Writes || before[0].Writes >= late.Writes {
		t.Errorf("the image shows %v; the copied start was at %v then and at %v in the end", before, early, late)
	}
}

func TestWhatWasSeenIsKept(t *testing.T) {
	o := testOptions(vfs.NewMem())
	h := open(t, o)
	id, want := hsm.NewHSMID(), Boot{ID: BootID{1}, Writes: 7}
	if _, ok, err := h.Seen(id); ok || err != nil {
		t.Error(ok, err)
	}
	now, _ := h.Boots()
	if err := h.See(id, want); err != nil {
		t.Fatal(err)
	}
	if later, _ := h.Boots(); later != now {
		t.Error("remembering another HSM counts as a change, and two would keep each other busy")
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := open(t, o).Seen(id); got != want || !ok || err != nil {
		t.Errorf("%v, %t, %v, want %v", got, ok, err, want)
	}
}
