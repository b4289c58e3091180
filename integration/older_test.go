package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// older is what a version of this software wrote that is frozen: a repository of a
// cluster that is gone, restored by every later version. None is ever written again.
var older = map[string]struct {
	root map[string]string // by snapshot
	keys int
	mac  string // of "known", with the key labelled one
}{
	"older-1": {map[string]string{"2": "829017d70fab147f156b6fb11fadc1a150c10177b82969ffe5d951de26bf6084"}, 5, "uNSDsLIvhM/msq2JFf2D6Q=="},
}

// TestRestoreOfOlderSoftware restores what older versions wrote into a cluster that
// serves: its users log in, its keys give the answers they gave, and what was destroyed
// stays so.
func TestRestoreOfOlderSoftware(t *testing.T) {
	t.Parallel()
	for name, want := range older {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			folder := filepath.Join(repository(), "integration", "testdata", name)
			store := m.path("store")
			must(t, os.CopyFS(store, os.DirFS(filepath.Join(folder, "repository"))))
			identity := filepath.Join(folder, "custodian.txt")
			m.ok(t, "snapshots", "verify", store, "--all", "--level", "use", "--identity", identity)
			for id, root := range want.root {
				west := &testCluster{machine: m, dir: m.path("west-" + id)}
				m.ok(t, "restore", "--from", store, "--snapshot", id, "--identity", identity, "--region", "west", "--hsms", "1", "--dir", west.dir)
				west.startAll(t)
				if got := west.root(t); got != root {
					t.Errorf("snapshot %s restores to root %s, want %s", id, got, root)
				}
				alice := west.as("crypto-user", "alice:alice-is-here-1")
				var list struct{ Total int }
				alice.json(t, &list, "key", "list", "--cluster", west.dir)
				if list.Total != want.keys {
					t.Errorf("%d keys, want %d", list.Total, want.keys)
				}
				write(t, m.path("data"), "known")
				var mac struct{ MAC string }
				alice.json(t, &mac, "crypto", "mac", "attr.label=one", "--in", m.path("data"), "--cluster", west.dir)
				if mac.MAC != want.mac {
					t.Errorf("the MAC is %s, want %s", mac.MAC, want.mac)
				}
				if r := alice.run(t, "key", "show", "attr.label=gone", "--cluster", west.dir); r.code == 0 || !strings.Contains(r.stderr, "hint: ") {
					t.Errorf("a destroyed key is back: %v", r)
				}
			}
		})
	}
}
