package figures

import (
	"context"
	"crypto/rand"
	be "encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/hsmtest"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

// vault is a running cluster with many keys, and where its snapshots go.
type vault struct {
	dir      string
	keyring  *hsm.Keyring
	objects  []hsm.MaskedObject
	size     int64 // of objects
	profile  *profile.Profile
	identity string // file
	minio    *miniotest.Server
	stores   int
	figures  *figures
}

// keyCounts is how many keys are backed up, one run for each: HSMBACKUP_FIGURES_KEYS,
// numbers between commas.
func keyCounts(b *testing.B) (counts []int) {
	s := os.Getenv("HSMBACKUP_FIGURES_KEYS")
	if s == "" {
		s = "100000"
	}
	for text := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		counts = append(counts, n)
	}
	return counts
}

func newVault(b *testing.B, keys int) *vault {
	v := &vault{dir: b.TempDir(), keyring: hsm.NewKeyring()}
	v.objects = hsmtest.Multiply(v.keyring, "root", keys)
	for _, m := range v.objects {
		v.size += int64(len(m.Bytes))
	}
	ca, err := pki.NewAuthority(v.keyring.Lineage())
	if err != nil {
		b.Fatal(err)
	}
	text, recipient, err := backup.NewIdentity(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	v.identity = filepath.Join(v.dir, "identity.txt")
	if err := os.WriteFile(v.identity, text.Reveal(), 0o600); err != nil {
		b.Fatal(err)
	}
	s := spec(filepath.Join(v.dir, "cluster"))
	s.Keyring, s.CA = v.keyring, ca.PEM()
	s.Fill = func(ctx context.Context, into hsm.Session) error {
		if _, err := into.(hsm.Loader).Load(ctx, "", partsOf(v.objects)); err != nil {
			return err
		}
		policy := hsm.Settings{MinCopies: 2, Custodians: []string{recipient}, Threshold: 1}
		_, err := into.Change(ctx, hsm.Change{Kind: hsm.ChangeSettings, Settings: &policy})
		return err
	}
	v.profile = start(b, s)
	if os.Getenv("HSMBACKUP_FIGURES_STORE") == "minio" {
		v.minio = miniotest.Start(b)
		b.Setenv("MINIO_ACCESS_KEY", v.minio.AccessKey)
		b.Setenv("MINIO_SECRET_KEY", v.minio.SecretKey)
	}
	return v
}

func partsOf(objects []hsm.MaskedObject) (parts []iter.Seq2[hsm.MaskedObject, error]) {
	for part := range slices.Chunk(objects, 1<<14) {
		parts = append(parts, sequence(part))
	}
	return parts
}

func sequence(objects []hsm.MaskedObject) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// store returns the location of an empty store: a folder, or with
// HSMBACKUP_FIGURES_STORE=minio a bucket of a MinIO on this machine.
func (v *vault) store(b *testing.B) string {
	v.stores++
	if v.minio == nil {
		return filepath.Join(v.dir, rand.Text())
	}
	bucket := fmt.Sprintf("store-%d", v.stores)
	v.minio.CreateBucket(bucket)
	return v.minio.MinioLocation(bucket)
}

func (v *vault) snapshot(b *testing.B, store string) (used usage, stored uint64) {
	used = measure(b, "snapshot", "--cluster", v.profile.Folder(), "--to", store, "--json", "--quiet")
	var s struct {
		Bytes uint64 `json:"bytes_stored"`
	}
	if err := json.Unmarshal(used.stdout, &s); err != nil {
		b.Fatal(err)
	}
	return used, s.Bytes
}

// change relabels a share of the keys on all HSMs, and returns their bytes.
func (v *vault) change(b *testing.B, share int) (changed int64) {
	c, err := cluster.Open(b.Context(), v.profile, cluster.Credential{Identity: v.profile.AppliancePath()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	clock := hsm.NewClock(hsm.NewHSMID(), time.Now)
	var list []hsm.MaskedObject
	for i := v.stores % share; i < len(v.objects); i += share {
		r, err := v.keyring.Unmask(v.objects[i])
		if err != nil {
			b.Fatal(err)
		}
		r.Set(hsm.AttributeRegister("label"), fmt.Appendf(nil, "changed %d", i), clock.Next())
		if v.objects[i], err = v.keyring.Mask(r); err != nil {
			b.Fatal(err)
		}
		list = append(list, v.objects[i])
		changed += int64(len(v.objects[i].Bytes))
	}
	n, err := c.Insert(b.Context(), sequence(list))
	if err != nil || n.Changed != len(list) {
		b.Fatal(n, err)
	}
	return changed
}

// BenchmarkBackup takes snapshots of a running cluster of three HSMs with the real
// command, verifies and restores them. Beside them stand the limits and a peer, on the same
// bytes in the same run: zstd and age as one stream, in memory and back, and from an HSM into
// the store; loading one object store, and three at once; and restic. At the end it prints all of it in a table with the bars, and for
// several numbers of keys the curve.
//
//	HSMBACKUP_FIGURES_KEYS=10000,100000,1000000 HSMBACKUP_FIGURES_STORE=minio go test -run '^$' -bench Backup -benchtime 3x -timeout 1h ./integration/figures
func BenchmarkBackup(b *testing.B) {
	var all []*figures
	for _, keys := range keyCounts(b) {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			v := newVault(b, keys)
			v.figures = &figures{keys: keys, bytes: v.size}
			all = append(all, v.figures)
			v.measureAll(b)
		})
	}
	for _, f := range all {
		fmt.Print(f)
	}
	fmt.Print(curve(all))
}

func (v *vault) measureAll(b *testing.B) {
	b.Run("limit=zstd|age", v.limitStream)
	b.Run("limit=age|zstd", v.limitUnstream)
	b.Run("pipe=hsm|zstd|age|store", v.pipe)
	store := ""
	v.each(b, "take", func(b *testing.B) usage {
		b.StopTimer()
		store = v.store(b)
		b.StartTimer()
		used, _ := v.snapshot(b, store)
		return used
	})
	b.Run("increment-1%", func(b *testing.B) { v.increment(b, store) })
	b.Run("idle", func(b *testing.B) { v.idle(b, store) })
	v.each(b, "verify-root", func(b *testing.B) usage {
		return measure(b, "snapshots", "verify", store, "--level", "root", "--identity", v.identity, "--quiet", "--no-record")
	})
	v.limitLoad(b, "limit=load", 1)
	v.limitLoad(b, "limit=load-3", 3) // as many as three HSMs have
	for _, hsms := range []string{"1", "3"} {
		v.each(b, "restore-"+hsms, func(b *testing.B) usage {
			folder := filepath.Join(v.dir, rand.Text())
			used := measure(b, "restore", "--from", store, "--identity", v.identity, "--name", "clone", "--region", "there", "--dir", folder, "--hsms", hsms, "--quiet")
			b.StopTimer()
			if err := os.RemoveAll(folder); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			return used
		})
	}
	if _, err := exec.LookPath("restic"); err == nil { // Debian's package
		v.restic(b)
	}
}

// each measures something b.N times.
func (v *vault) each(b *testing.B, name string, once func(b *testing.B) usage) {
	b.Run(name, func(b *testing.B) {
		b.SetBytes(v.size)
		u := usage{}
		for range b.N {
			u.add(once(b))
		}
		u.report(b)
		v.figures.set(b, name, u, "")
	})
}

func (v *vault) increment(b *testing.B, store string) {
	u, share := usage{}, 0.0
	for range b.N {
		b.StopTimer()
		v.stores++
		changed := v.change(b, 100)
		b.StartTimer()
		used, stored := v.snapshot(b, store)
		u.add(used)
		share += float64(stored) / float64(changed)
	}
	u.report(b)
	b.ReportMetric(share/float64(b.N), "stored/changed")
	v.figures.set(b, "increment-1%", u, fmt.Sprintf("%.2f of the changed bytes stored", share/float64(b.N)))
}

// idle takes snapshots of an unchanged cluster as the daemon does, in this
// process, which does nothing else.
func (v *vault) idle(b *testing.B, location string) {
	store, err := open.Open(b.Context(), location)
	if err != nil {
		b.Fatal(err)
	}
	c, err := cluster.Open(b.Context(), v.profile, cluster.Credential{Identity: v.profile.AppliancePath()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	s := backup.NewSeries(clone.Origin(c), store, backup.TakeOptions{})
	for range 2 {
		if _, err := s.Take(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	const rounds = 100
	before := cpuTime(b, os.Getpid())
	b.ResetTimer()
	for range b.N * rounds {
		if r, err := s.Take(b.Context()); err != nil || !r.Unchanged {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64((cpuTime(b, os.Getpid())-before).Microseconds())/1000/float64(b.N*rounds), "cpu-ms/take")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N*rounds), "ms/take")
	spent := (cpuTime(b, os.Getpid()) - before) / time.Duration(b.N*rounds)
	v.figures.rows = append(slices.DeleteFunc(v.figures.rows, func(r row) bool { return r.what == "idle" }),
		row{what: "idle", seconds: b.Elapsed().Seconds() / float64(b.N*rounds), cpu: spent.Seconds()})
}

// limitLoad writes the objects, in order, into so many object stores at once, as raw as it
// comes: nothing opened or authenticated, no index, a durable step for every 512.
func (v *vault) limitLoad(b *testing.B, name string, stores int) {
	b.Run(name, func(b *testing.B) {
		b.SetBytes(v.size)
		for range b.N {
			b.StopTimer()
			folder := filepath.Join(v.dir, rand.Text())
			b.StartTimer()
			var work errgroup.Group
			for i := range stores {
				work.Go(func() error { return v.loadRaw(filepath.Join(folder, strconv.Itoa(i))) })
			}
			if err := work.Wait(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := os.RemoveAll(folder); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		v.figures.set(b, name, usage{}, fmt.Sprintf("stores as raw as they come: %d", stores))
	})
}

func (v *vault) loadRaw(folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	db, err := pebble.Open(folder, &pebble.Options{MemTableSize: 16 << 20, Logger: silent{}})
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(v.objects, 512) {
		batch := db.NewBatch()
		for _, m := range chunk {
			if err := batch.Set(be.BigEndian.AppendUint64([]byte{'o'}, uint64(m.Ref)), m.Bytes, nil); err != nil {
				return err
			}
		}
		if err := batch.Commit(pebble.Sync); err != nil {
			return err
		}
	}
	return db.Close()
}

// silent drops what the object store has to say.
type silent struct{}

func (silent) Infof(string, ...any)         {}
func (silent) Errorf(string, ...any)        {}
func (silent) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }
