package soft

import (
	"errors"
	"fmt"
	"iter"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// kept is a load that is begun on one store and gone on with on another.
type kept struct {
	t      *testing.T
	o      Options
	want   hsm.Root
	keys   uint64
	seen   int    // by alice
	latest uint64 // time of a stamp
	parts  [][]hsm.MaskedObject

	mu   sync.Mutex
	read map[int]int // how often each part was read to its end
}

func newKept(t *testing.T, fs vfs.FS, parts int) *kept {
	t.Helper()
	o := testOptions(nil)
	source, all := loadable(t, o)
	k := &kept{t: t, o: o, want: source.info().Root, keys: source.info().Keys, seen: 50, parts: make([][]hsm.MaskedObject, parts), read: map[int]int{}}
	for i, m := range all {
		k.parts[i%parts] = append(k.parts[i%parts], m)
	}
	k.o.FS, k.o.LoadDir, k.o.loadUnit = fs, "kept", 1
	for _, m := range all {
		r, err := o.Keyring.Unmask(m)
		must0(t, err)
		k.latest = max(k.latest, r.Latest().Time)
	}
	k.o.Now = func() time.Time { return time.Now().Add(-hsm.MaxAhead / 2) } // what is loaded is from ahead of this clock
	return k
}

// load loads into a new store. stop is called with each object that is read, and may
// end the load.
func (k *kept) load(dir, job string, stop func(part, object int) error) (*HSM, hsm.Inserted, error) {
	k.t.Helper()
	o := k.o
	o.Dir = dir
	h := open(k.t, o)
	clear(k.read)
	var parts []iter.Seq2[hsm.MaskedObject, error]
	for i, objects := range k.parts {
		parts = append(parts, func(yield func(hsm.MaskedObject, error) bool) {
			for n, m := range objects {
				if err := stop(i, n); err != nil {
					yield(hsm.MaskedObject{}, err)
					return
				}
				if !yield(m, nil) {
					return
				}
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			k.read[i]++
		})
	}
	n, err := peer(k.t, h).Load(k.t.Context(), job, parts)
	return h, n, err
}

func goOn(int, int) error { return nil }

// finish loads what is left, and checks that the HSM holds everything.
func (k *kept) finish(dir, job string) hsm.Inserted {
	k.t.Helper()
	h, n, err := k.load(dir, job, goOn)
	if err != nil {
		k.t.Fatal(err)
	}
	k.mustHold(h)
	if err := h.Close(); err != nil {
		k.t.Fatal(err)
	}
	o := k.o
	o.Dir, o.Existing = dir, true
	h = open(k.t, o) // what is rebuilt from the disk is the same
	k.mustHold(h)
	if err := h.Close(); err != nil {
		k.t.Fatal(err)
	}
	return n
}

func (k *kept) mustHold(h *HSM) {
	k.t.Helper()
	if got := h.info(); got.Root != k.want || got.Keys != k.keys {
		k.t.Fatalf("it holds %d objects and %d keys, want %d and %d", got.Root.Count, got.Keys, k.want.Count, k.keys)
	}
	if got := h.clock.Latest(); got < k.latest {
		k.t.Fatalf("its clock is at %d, a stamp at %d", got, k.latest)
	}
	alice := login(k.t, h, "alice") // users are known, too
	if n := len(keysOf(k.t, alice, hsm.Filter{})); n != k.seen {
		k.t.Fatalf("alice sees %d keys", n)
	}
	createKey(k.t, alice)
	k.want, k.keys, k.seen = h.info().Root, h.info().Keys, k.seen+1
}

// TestLoadGoesOn breaks a load off in each part, as a machine does that loses
// its power, with none, some or all of what was not synced. The next one, on another
// store, reads no part again of which there is a note, and holds everything.
func TestLoadGoesOn(t *testing.T) {
	const parts = 8
	random := mathrand.New(mathrand.NewPCG(1, 2))
	for part := range parts {
		for _, percent := range []int{0, 50, 100} {
			fs := vfs.NewCrashableMem()
			k := newKept(t, fs, parts)
			var crashed *vfs.MemFS
			_, _, err := k.load("first", "job", func(p, n int) error {
				k.mu.Lock()
				defer k.mu.Unlock()
				if p == part && n == 3 && crashed == nil {
					crashed = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: random})
				}
				if crashed != nil {
					return errors.New("the machine is off")
				}
				return nil
			})
			if err == nil || crashed == nil {
				t.Fatal("it was not broken off", err)
			}
			k.o.FS = crashed
			notes := 0
			for _, name := range must[[]string](t)(crashed.List("kept")) {
				if unitFile.MatchString(name) {
					notes++
				}
			}
			n := k.finish("second", "job")
			if len(k.read) != parts-notes || n.Added+n.Unchanged != len(slices.Concat(k.parts...)) || (n.Unchanged > 0) != (notes > 0) || notes < part-1 {
				t.Fatalf("part %d, %d %%: %d notes, %d parts were read, %+v", part, percent, notes, len(k.read), n)
			}
		}
	}
}

// TestLoadAfterTheStoreTookOver: it died when everything was read, and the store had
// taken the tables over: they are all there still.
func TestLoadAfterTheStoreTookOver(t *testing.T) {
	k := newKept(t, vfs.NewMem(), 5)
	if n := k.finish("first", "job"); n.Unchanged != 0 {
		t.Fatalf("%+v", n)
	}
	h, n, err := k.load("second", "job", goOn)
	if err != nil || len(k.read) != 0 || n.Added != 0 || n.Unchanged != len(slices.Concat(k.parts...)) {
		t.Fatalf("%+v, %v, %d parts were read", n, err, len(k.read))
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLoadIsNotMistaken: what was kept of another job, by other software, or is not
// what it should be, is read again.
func TestLoadIsNotMistaken(t *testing.T) {
	rewrite := func(old, new string) func(*kept) {
		return func(k *kept) {
			for _, name := range k.kept("unit") {
				b := k.file(name)
				k.put(name, []byte(strings.ReplaceAll(string(b), old, new)))
			}
		}
	}
	for name, c := range map[string]struct {
		spoil func(*kept)
		read  int // parts that are read again
	}{
		"nothing":          {func(*kept) {}, 0},
		"another job":      {rewrite(`"job":"job"`, `"job":"other"`), 4},
		"another version":  {rewrite(`"version":""`, `"version":"v9"`), 4},
		"no JSON":          {rewrite(`{`, `[`), 4},
		"an unknown field": {rewrite(`{`, `{"x":1,`), 4},
		"no such part":     {rewrite(`"parts":[`, `"parts":[99,`), 4},
		"a negative part":  {rewrite(`"parts":[`, `"parts":[-1,`), 4},
		"a part twice":     {rewrite(`"parts":[2]`, `"parts":[2,2]`), 1},
		"a foreign table":  {rewrite(`"tables":[`, `"tables":["../first/CURRENT",`), 4},
		"no table":         {rewrite(`"tables":`, `"tables":[],"x":`), 4},
		"a missing table":  {func(k *kept) { must0(t, k.o.FS.Remove("kept/"+k.kept("sst")[0])) }, 1},
		"a table cut off": {func(k *kept) {
			name := k.kept("sst")[0]
			b := k.file(name)
			k.put(name, b[:len(b)/2])
		}, 1},
		"a bit of a table": {func(k *kept) {
			for _, name := range k.kept("sst") {
				b := k.file(name)
				b[len(b)/4] ^= 1
				k.put(name, b)
			}
		}, 4},
		"an empty table": {func(k *kept) { k.put(k.kept("sst")[0], nil) }, 1},
		"two notes of one": {func(k *kept) {
			names := k.kept("unit")
			k.put(names[1], k.file(names[0]))
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKept(t, vfs.NewMem(), 4)
			k.t = t
			h, _, err := k.load("first", "job", goOn)
			if err := errors.Join(err, h.Close()); err != nil {
				t.Fatal(err)
			}
			c.spoil(k)
			if k.finish("second", "job"); len(k.read) != c.read {
				t.Errorf("%d parts were read again, want %d", len(k.read), c.read)
			}
		})
	}
}

// TestLoadWithoutAJobKeepsNothing.
func TestLoadWithoutAJobKeepsNothing(t *testing.T) {
	k := newKept(t, vfs.NewMem(), 4)
	k.finish("first", "")
	if _, err := k.o.FS.Stat("kept"); err == nil {
		t.Error("a folder is left")
	}
}

func must0(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kept lists the files of one kind.
func (k *kept) kept(kind string) (names []string) {
	k.t.Helper()
	for _, name := range must[[]string](k.t)(k.o.FS.List("kept")) {
		if strings.HasSuffix(name, "."+kind) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (k *kept) file(name string) []byte {
	k.t.Helper()
	f := must[vfs.File](k.t)(k.o.FS.Open("kept/" + name))
	info := must[vfs.FileInfo](k.t)(f.Stat())
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil && len(b) > 0 {
		k.t.Fatal(fmt.Errorf("%s: %w", name, err))
	}
	return b
}

func (k *kept) put(name string, b []byte) {
	k.t.Helper()
	f := must[vfs.File](k.t)(k.o.FS.Create("kept/"+name, vfs.WriteCategoryUnspecified))
	_, err := f.Write(b)
	must0(k.t, errors.Join(err, f.Sync(), f.Close()))
}
