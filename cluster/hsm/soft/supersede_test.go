package soft

import (
	"context"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestWhatGivesWayIsAudited: whether it was decided here or came in by sync, the
// audit log names the key that gave way, and who decided.
func TestWhatGivesWayIsAudited(t *testing.T) {
	var mu sync.Mutex
	var log []string
	o := testOptions(vfs.NewMem())
	o.Audit = func(_ context.Context, event string, who hsm.Principal, ref hsm.KeyRef, detail string, _ error) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, strings.Join([]string{event, string(who.Role), ref.String(), detail}, "|"))
	}
	a := withUser(t, open(t, o))
	o.FS, o.ID = vfs.NewMem(), hsm.NewHSMID()
	b := withUser(t, open(t, o))
	ref := hsm.NewKeyRef()
	stays, yields := twin(t, a, ref), twin(t, a, ref)
	insert := func(h *HSM, m hsm.MaskedObject) {
		s := must[hsm.Session](t)(h.Module(hsm.Principal{Role: hsm.RoleHSM, Name: "peer"}).Session(t.Context()))
		if _, err := s.Insert(t.Context(), func(yield func(hsm.MaskedObject, error) bool) { yield(m, nil) }); err != nil {
			t.Fatal(err)
		}
	}
	insert(a, yields)
	insert(b, yields)
	_, r, err := hsm.ParseMasked(stays.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	decided := must[hsm.MaskedObject](t)(login(t, a, "admin").Change(t.Context(), hsm.Change{Kind: hsm.ChangeSupersede, Ref: ref, Masked: &stays, Value: hex.EncodeToString(r.Birth[:])}))
	insert(b, decided)
	for _, who := range []string{"admin", "hsm"} {
		is := func(line string) bool {
			return strings.HasPrefix(line, "superseded|"+who+"|"+ref.String()+"|birth ") && strings.Contains(line, `live, of "alice", label "twin"`) && !strings.Contains(line, hex.EncodeToString(r.Birth[:]))
		}
		if !slices.ContainsFunc(log, is) {
			t.Errorf("nothing tells what gave way where %s wrote: %q", who, log)
		}
	}
}

// twin is a key under a reference of the test's choice.
func twin(t *testing.T, h *HSM, ref hsm.KeyRef) hsm.MaskedObject {
	t.Helper()
	kek := createAs(t, login(t, h, "alice"), hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"label": "twin"}})
	cur, err := h.read(hsm.ScopeLineage, kek.Ref)
	if err != nil {
		t.Fatal(err)
	}
	r := cur.rec.Clone()
	r.Ref = ref
	r.Birth = must[[16]byte](t)(h.keys().Birth(r))
	return must[hsm.MaskedObject](t)(h.keys().Mask(r))
}
