package server

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// fullDisks are the folders whose disk is full: of a file that is written there a
// part fits.
var fullDisks sync.Map

// fillableDisks puts disks that can be full in the place of others, once, before any
// test runs.
func fillableDisks() {
	real := newFile
	newFile = func(path string, mode os.FileMode) (writeSyncCloser, error) {
		f, err := real(path, mode)
		if _, full := fullDisks.Load(filepath.Dir(path)); full && err == nil {
			return fullFile{f}, nil
		}
		return f, err
	}
}

type fullFile struct{ writeSyncCloser }

func (f fullFile) Write(b []byte) (int, error) {
	n, err := f.writeSyncCloser.Write(b[:len(b)/2])
	return n, errors.Join(err, syscall.ENOSPC)
}

// TestADiskFullUnderTheKeyring: a new masking key that does not fit is refused, with
// ErrFull; the file before is there, to the byte, also after a restart, and keys are
// made as before; once there is space the rotation goes through.
func TestADiskFullUnderTheKeyring(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	one := w.boxes[0]
	sealed := filepath.Join(one.folder, sealedFile)
	before, err := os.ReadFile(sealed)
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("the other HSM is away", func() bool { return one.server.everyMember() == nil })
	fullDisks.Store(one.folder, true)
	if err := w.rotate(one); !errors.Is(err, hsm.ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
	unchanged := func(when string) {
		t.Helper()
		after, err := os.ReadFile(sealed)
		if err != nil || !bytes.Equal(after, before) || len(one.info().Epochs) != 1 {
			t.Errorf("%s: the keyring's file has changed: %v", when, err)
		}
		w.eventually(when+": a file that did not fit is left", func() bool { // one that is being tried may be there
			left, _ := filepath.Glob(filepath.Join(one.folder, "*.new"))
			return len(left) == 0
		})
		w.createKey(one.alice(), when)
	}
	unchanged("after the refusal")
	if err := one.stop(); err != nil {
		t.Fatal(err)
	}
	one.start()
	unchanged("after a restart")

	// A key that another HSM makes meanwhile does not seal, since this one lacks it.
	w.eventually("no rotation on the other", func() bool { return w.rotate(w.boxes[1]) == nil })
	w.rounds()
	if i := w.boxes[1].info(); len(i.Epochs) != 2 || i.Sealing != 1 {
		t.Errorf("epochs %v, sealing %d: an HSM with a full disk does not hold the new key", i.Epochs, i.Sealing)
	}
	unchanged("while the other brings its key")
	fullDisks.Delete(one.folder)
	w.sealing(2)
	w.converge()
}
