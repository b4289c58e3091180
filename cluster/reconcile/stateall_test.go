package reconcile_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// TestAddAllIsUpdate: any number of objects at once, and one after the other.
func TestAddAllIsUpdate(t *testing.T) {
	keys := hsm.NewKeyring().FingerprintKeys()
	for _, n := range []int{0, 1, 7, 8, 9, 300} {
		objects := make([]hsm.Object, n)
		for i := range objects {
			objects[i] = hsm.Object{Ref: hsm.KeyRef(i + 1), Kind: hsm.KindKey, Tombstone: i%3 == 0, Digest: hsm.Digest{byte(i), byte(i >> 8), 1}}
		}
		one, all := reconcile.NewState(keys, 0), reconcile.NewState(keys, 0)
		for i := range objects {
			one.Update(nil, &objects[i])
		}
		all.AddAll(objects[:n/2])
		all.AddAll(objects[n/2:])
		if one.Root() != all.Root() {
			t.Errorf("%d objects: another root", n)
		}
		if diff := cmp.Diff(one.Cells(), all.Cells()); diff != "" {
			t.Errorf("%d objects: %s", n, diff)
		}
	}
}
