package sim

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// storeDir is the folder of every HSM's object store, on a disk of its own.
const storeDir = "store"

// What must never be on a disk, nor in a masked object. Material in clear begins
// so, and the labels of keys that stay session keys.
var (
	clearMaterial = []byte("MATERIAL-IN-CLEAR")
	sessionLabel  = []byte("SESSION-KEY-")
)

// disk is the file system of one life of an HSM: it dies with it. After a number
// of steps, if one is set, the power fails.
type disk struct {
	*vfs.MemFS
	b      *box
	fuse   atomic.Int64 // steps left before the power fails; 0: none is set
	full   atomic.Int32 // noSpaceSoon, noSpaceNow
	dead   atomic.Bool
	unsafe bool // Sync does nothing: a planted bug
}

// How full a disk is: it says so, or it says so when it is written to.
const (
	noSpaceSoon = 1
	noSpaceNow  = 2
)

// step comes before each change to the disk, apart from removals, which pebble
// does beside its other work and in no order that a seed could decide. What holds
// if we die here is for the HSM to find out.
func (d *disk) step(what, name string) {
	if d.fuse.Load() > 0 && d.fuse.Add(-1) == 0 {
		d.b.crash(d, "at "+what+" "+d.PathBase(name))
	}
}

// write comes before each write of data.
func (d *disk) write(name string, p []byte) error {
	d.step("write", name)
	for _, secret := range [][]byte{clearMaterial, sessionLabel} {
		if bytes.Contains(p, secret) {
			d.b.w.violate("%s writes %q to its disk, in %s", d.b.name, secret, name)
		}
	}
	if d.full.Load() == noSpaceNow && strings.HasSuffix(name, ".log") {
		return syscall.ENOSPC
	}
	return nil
}

func (d *disk) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f, d: d, name: name}, nil
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	d.step("create", name)
	f, err := d.MemFS.Create(name, c)
	return d.wrap(name, f, err)
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.MemFS.OpenReadWrite(name, c, o...)
	return d.wrap(name, f, err)
}

func (d *disk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	d.step("reuse", old)
	f, err := d.MemFS.ReuseForWrite(old, name, c)
	return d.wrap(name, f, err)
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.MemFS.OpenDir(name)
	return d.wrap(name, f, err)
}

func (d *disk) Link(old, name string) error {
	d.step("link", name)
	return d.MemFS.Link(old, name)
}

func (d *disk) Rename(old, name string) error {
	d.step("rename", name)
	return d.MemFS.Rename(old, name)
}

func (d *disk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	const size = 1 << 40
	u := vfs.DiskUsage{TotalBytes: size, AvailBytes: size / 2, UsedBytes: size / 2}
	if d.full.Load() == noSpaceSoon {
		u.AvailBytes = 1 << 20
	}
	return u, nil
}

// diskFile is an open file.
type diskFile struct {
	vfs.File
	d    *disk
	name string
}

func (f *diskFile) Write(p []byte) (int, error) {
	if err := f.d.write(f.name, p); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.write(f.name, p); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *diskFile) Sync() error {
	f.d.step("sync", f.name)
	if f.d.unsafe {
		return nil
	}
	return f.File.Sync()
}

func (f *diskFile) SyncData() error {
	f.d.step("sync", f.name)
	if f.d.unsafe {
		return nil
	}
	return f.File.SyncData()
}

func (f *diskFile) SyncTo(length int64) (bool, error) {
	f.d.step("sync", f.name)
	if f.d.unsafe {
		return false, nil
	}
	return f.File.SyncTo(length)
}

// powerLoss returns what a loss of power may leave of a disk: what was synced, and
// of what was not, some. Names of files are journaled, as ext4 and xfs do it: those
// created, renamed and removed since the folder was synced are all kept or all
// undone. Of data written since a file was synced nothing, all, or the first part
// is there, file by file.
func powerLoss(mem *vfs.MemFS, dice func(file string) *dice) (*vfs.MemFS, error) {
	synced := mem.CrashClone(vfs.CrashCloneCfg{})
	all := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(0, 0))})
	named := []*vfs.MemFS{synced, all}[dice("").n(2)]
	names, err := named.List(storeDir)
	if errors.Is(err, os.ErrNotExist) {
		return synced, nil
	}
	out := vfs.NewCrashableMem()
	if err := errors.Join(err, out.MkdirAll(storeDir, 0o700)); err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := mixed(synced, all, name, dice(name))
		if err == nil {
			err = store(out, name, b)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, syncFolders(out)
}

// mixed returns what is left of one file.
func mixed(synced, all *vfs.MemFS, name string, d *dice) ([]byte, error) {
	before, had, err := load(synced, name)
	if err != nil {
		return nil, err
	}
	after, has, err := load(all, name)
	switch how := d.n(3); {
	case err != nil || !had || has && how == 0:
		return after, err
	case !has || how == 1 || !bytes.HasPrefix(after, before):
		return before, nil
	default:
		return after[:len(before)+d.n(len(after)-len(before)+1)], nil
	}
}

func load(fs *vfs.MemFS, name string) (b []byte, exists bool, err error) {
	f, err := fs.Open(fs.PathJoin(storeDir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	b, err = io.ReadAll(f)
	return b, true, errors.Join(err, f.Close())
}

func store(fs *vfs.MemFS, name string, b []byte) error {
	f, err := fs.Create(fs.PathJoin(storeDir, name), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncFolders(fs *vfs.MemFS) error {
	var errs []error
	for _, name := range []string{storeDir, "/"} {
		f, err := fs.OpenDir(name)
		if err != nil {
			return err
		}
		errs = append(errs, f.Sync(), f.Close())
	}
	return errors.Join(errs...)
}
