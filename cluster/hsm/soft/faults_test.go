package soft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// smallDisk tells how much room is left.
type smallDisk struct {
	vfs.FS
	left atomic.Uint64
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.left.Load(), TotalBytes: 1 << 40}, nil
}

// TestFull: when only the reserve is left, writes are refused with nothing
// done, reads go on, and writes go on once there is room.
func TestFull(t *testing.T) {
	disk := &smallDisk{FS: vfs.NewMem()}
	disk.left.Store(reserve + 1)
	h := withUser(t, open(t, testOptions(disk)))
	s := login(t, h, "alice")
	k := createKey(t, s)
	op := randomOp()
	made := must[hsm.Created](t)(s.Create(t.Context(), op, aesRequest))
	root := must[hsm.Root](t)(peer(t, h).Root(t.Context()))

	disk.left.Store(reserve)
	h.store.roomy.Store(0) // it looks again every few milliseconds
	full := map[string]error{}
	_, full["create"] = s.Create(t.Context(), randomOp(), aesRequest)
	full["commit"] = s.Commit(t.Context(), op)
	_, full["change"] = s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: k.Ref, Name: "label", Value: "x"})
	_, full["insert"] = peer(t, h).Insert(t.Context(), each([]hsm.MaskedObject{handmade(t, h.keys(), "alice", time.Now())}))
	for what, err := range full {
		if !errors.Is(err, hsm.ErrFull) {
			t.Errorf("%s: %v, want ErrFull", what, err)
		}
	}
	if now := must[hsm.Root](t)(peer(t, h).Root(t.Context())); now != root {
		t.Error("the root changed")
	}
	if _, err := s.Key(t.Context(), k.Ref); err != nil {
		t.Error(err)
	}
	checkStore(t, h)

	disk.left.Store(reserve + 1)
	if err := s.Commit(t.Context(), op); err != nil {
		t.Error(err)
	}
	if _, err := s.Key(t.Context(), made.Keys[0].Ref); err != nil {
		t.Error(err)
	}
	createKey(t, s)
	checkStore(t, h)
}

// TestLogFails: an HSM whose log cannot be written acknowledges nothing and
// serves nothing, because what it would show may be gone after a restart.
func TestLogFails(t *testing.T) {
	for name, cause := range map[string]error{"i/o error": errors.New("bad sector"), "no space": syscall.ENOSPC} {
		t.Run(name, func(t *testing.T) {
			disk := vfs.NewCrashableMem()
			var broken atomic.Bool
			o := testOptions(errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if broken.Load() && strings.HasSuffix(op.Path, ".log") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
					return cause
				}
				return nil
			})))
			h := withUser(t, open(t, o))
			s := login(t, h, "alice")
			k := createKey(t, s)
			op := randomOp()
			if _, err := s.Create(t.Context(), op, aesRequest); err != nil {
				t.Fatal(err)
			}
			broken.Store(true)
			if err := s.Commit(t.Context(), op); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "store") {
				t.Errorf("commit: %v, want ErrUnavailable with the folder", err)
			}
			broken.Store(false)
			_, err := s.Key(t.Context(), k.Ref)
			_, err2 := s.Create(t.Context(), randomOp(), aesRequest)
			for _, err := range []error{err, err2} {
				if !errors.Is(err, hsm.ErrUnavailable) {
					t.Errorf("afterwards: %v, want ErrUnavailable", err)
				}
			}
			if i, err := s.Info(t.Context()); err != nil || i.State != "DEGRADED" {
				t.Errorf("info: %q, %v, want DEGRADED", i.State, err)
			}
			o.FS = disk.CrashClone(vfs.CrashCloneCfg{})
			h2 := open(t, o)
			if _, err := login(t, h2, "alice").Key(t.Context(), k.Ref); err != nil {
				t.Errorf("an acknowledged key after a restart: %v", err)
			}
			checkStore(t, h2)
		})
	}
}

// filledStore makes a folder with tables and a log, and returns what it holds.
func filledStore(t *testing.T) (Options, []hsm.MaskedObject) {
	t.Helper()
	o := testOptions(nil)
	o.Dir = filepath.Join(t.TempDir(), "store")
	var objects []hsm.MaskedObject
	for range 400 {
		objects = append(objects, handmade(t, o.Keyring, "alice", time.Now()))
	}
	for _, part := range [][]hsm.MaskedObject{objects[:300], objects[300:]} {
		h := open(t, o) // replaying the log of the part before makes a table of it
		if _, err := peer(t, h).Insert(t.Context(), each(part)); err != nil {
			t.Fatal(err)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return o, objects
}

// TestDamagedFiles flips one bit in each file of the store. The HSM says which
// folder is damaged and what to do, or it has everything.
func TestDamagedFiles(t *testing.T) {
	o, objects := filledStore(t)
	files := must[[]string](t)(filepath.Glob(filepath.Join(o.Dir, "*")))
	for _, path := range files {
		info := must[os.FileInfo](t)(os.Stat(path))
		if info.Size() == 0 || strings.HasPrefix(info.Name(), "marker.") || info.Name() == "LOCK" {
			continue
		}
		for _, at := range []int64{1, info.Size() / 2, info.Size() - 2} {
			t.Run(fmt.Sprintf("%s/%d", info.Name(), at), func(t *testing.T) {
				damaged := o
				damaged.Dir = filepath.Join(t.TempDir(), "store")
				if err := os.CopyFS(damaged.Dir, os.DirFS(o.Dir)); err != nil {
					t.Fatal(err)
				}
				b := must[[]byte](t)(os.ReadFile(path))
				b[at] ^= 0x10
				if err := os.WriteFile(filepath.Join(damaged.Dir, info.Name()), b, 0o600); err != nil {
					t.Fatal(err)
				}
				found, err := readAll(t, damaged)
				switch {
				case err == nil && found == len(objects):
				case !errors.Is(err, hsm.ErrCorrupt):
					t.Errorf("%d of %d objects, %v: want all, or ErrCorrupt", found, len(objects), err)
				case !strings.Contains(err.Error(), damaged.Dir) || !strings.Contains(err.Error(), "replace this HSM"):
					t.Errorf("%v: want the folder and what to do", err)
				}
			})
		}
	}
}

func readAll(t *testing.T, o Options) (n int, err error) {
	h, err := Open(o)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	s := peer(t, h)
	refs := func(yield func(hsm.KeyRef) bool) {
		for o, listErr := range s.Objects(t.Context()) {
			if listErr != nil {
				err = listErr
				return
			}
			if !yield(o.Ref) {
				return
			}
		}
	}
	for _, extractErr := range s.Extract(t.Context(), refs) {
		if extractErr != nil {
			return n, extractErr
		}
		n++
	}
	return n, err
}

// TestAlteredObject: who can write to the disk, checksums and all, cannot pass
// another object off.
func TestAlteredObject(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	s := login(t, h, "alice")
	a, b := createKey(t, s), createKey(t, s)
	other := must[[]byte](t)(get(h.store.db, objectKey(hsm.ScopeLineage, b.Ref)))
	altered := bytes.Clone(other)
	altered[len(altered)-1] ^= 1
	for what, v := range map[string][]byte{"another key's bytes": other, "altered bytes": altered, "nothing": {}} {
		if err := h.store.db.Set(objectKey(hsm.ScopeLineage, a.Ref), v, pebble.Sync); err != nil {
			t.Fatal(err)
		}
		h.cache.drop(a.Ref)
		if _, err := s.Key(t.Context(), a.Ref); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
}

// TestForeignStore: the keys and the store must belong together.
func TestForeignStore(t *testing.T) {
	o := testOptions(vfs.NewMem())
	h := withUser(t, open(t, o))
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Keyring = hsm.NewKeyring()
	if _, err := Open(other); !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("open with another lineage's keys: %v, want ErrLineage", err)
	}
	s := must[*store](t)(openStore(o.Dir, o.FS, false))
	if err := s.db.Set([]byte{prefixFormat}, []byte{storeFormat + 1}, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("open of a newer layout: %v, want ErrCorrupt", err)
	}
}

// TestOneProcess: a store that is open is not opened again.
func TestOneProcess(t *testing.T) {
	o := testOptions(nil)
	o.Dir = filepath.Join(t.TempDir(), "store")
	open(t, o)
	if _, err := Open(o); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), o.Dir) {
		t.Errorf("open twice: %v, want ErrUnavailable with the folder", err)
	}
}

// TestNoClearKeysOnDisk searches the store's files for key material, of a token
// key and of a session key, and for the password.
func TestNoClearKeysOnDisk(t *testing.T) {
	o := testOptions(nil)
	o.Dir = filepath.Join(t.TempDir(), "store")
	h := withUser(t, open(t, o))
	s := login(t, h, "alice")
	material := []byte("0123456789abcdefghijklmnopqrstuv")
	for _, token := range []bool{true, false} {
		op := randomOp()
		made := must[hsm.Created](t)(s.Create(t.Context(), op, hsm.CreateRequest{Method: hsm.MethodImport, Token: token, Type: "aes", Data: hsm.NewSecret(bytes.Clone(material))}))
		if token {
			if err := s.Commit(t.Context(), op); err != nil {
				t.Fatal(err)
			}
		}
		if made.Keys[0].Token != token {
			t.Error("wrong kind of key")
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, o) // flushes the log to a table
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	bytesRead := 0
	err := filepath.WalkDir(o.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		bytesRead += len(b)
		for _, secret := range []string{string(material), testPassword} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds a secret in clear", filepath.Base(path))
			}
		}
		return err
	})
	if err != nil || bytesRead == 0 {
		t.Errorf("searched %d bytes, %v", bytesRead, err)
	}
}

// TestListingIsCancelledInTheMiddle: who ends a listing because its context has
// ended, as a server does whose client is gone, hears no more of it.
func TestListingIsCancelledInTheMiddle(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	user := login(t, h, "alice")
	createKey(t, user)
	createKey(t, user)
	for _, s := range []*session{user, peer(t, h)} {
		for what, list := range map[string]func(context.Context, func() bool){
			"objects": func(ctx context.Context, yield func() bool) {
				s.Objects(ctx)(func(hsm.Object, error) bool { return yield() })
			},
			"keys": func(ctx context.Context, yield func() bool) {
				s.Keys(ctx, hsm.Filter{})(func(hsm.KeyInfo, error) bool { return yield() })
			},
			"extract": func(ctx context.Context, yield func() bool) {
				s.Extract(ctx, slices.Values(must[[]hsm.KeyRef](t)(refsOfKeys(h))))(func(hsm.MaskedObject, error) bool { return yield() })
			},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			list(ctx, func() bool { n++; cancel(); return false })
			if n != 1 {
				t.Errorf("%s of %s: %d items after the end", what, s.who.Role, n-1)
			}
		}
	}
}
