package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func seals(t *testing.T) map[string]Seal {
	t.Helper()
	dir := t.TempDir()
	file, err := NewFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	pass, err := Passphrase(hsm.NewSecret([]byte("correct horse")), 10)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]Seal{"file": file, "passphrase": pass}
}

func TestSealOpensWhatItClosed(t *testing.T) {
	want := hsm.NewSecret([]byte("masking key"))
	for name, s := range seals(t) {
		sealed, err := s.Close(want)
		if err != nil {
			t.Fatal(name, err)
		}
		if bytes.Contains(sealed, want.Reveal()) {
			t.Errorf("%s: the secret stands in clear", name)
		}
		got, err := s.Open(sealed)
		if err != nil || !got.Equal(want) {
			t.Errorf("%s: open: %v", name, err)
		}
	}
}

func TestAnotherSealDoesNotOpen(t *testing.T) {
	a, b := seals(t), seals(t)
	sealed, err := a["file"].Close(hsm.NewSecret([]byte("masking key")))
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]Seal{"another file": b["file"], "passphrase": b["passphrase"]} {
		if _, err := s.Open(sealed); !errors.Is(err, ErrSeal) {
			t.Errorf("%s: got %v, want ErrSeal", name, err)
		}
	}
}

func TestAChangedSealedFileDoesNotOpen(t *testing.T) {
	s := seals(t)["file"]
	sealed, err := s.Close(hsm.NewSecret([]byte("masking key")))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := s.Open(bad); !errors.Is(err, ErrSeal) {
			t.Fatalf("byte %d changed: got %v, want ErrSeal", i, err)
		}
	}
	if _, err := s.Open(sealed[:len(sealed)-1]); !errors.Is(err, ErrSeal) {
		t.Errorf("truncated: got %v, want ErrSeal", err)
	}
}

func TestFileSealReopens(t *testing.T) {
	dir := t.TempDir()
	s, err := NewFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Close(hsm.NewSecret([]byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Open(sealed); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if _, err := OpenFile(t.TempDir()); !errors.Is(err, ErrSeal) {
		t.Errorf("missing file: got %v, want ErrSeal", err)
	}
}
