package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// FuzzOpen: a sealed file that was changed opens to what was sealed, or not at all.
func FuzzOpen(f *testing.F) {
	s, err := NewFile(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	secret := []byte("a keyring, a CA and a TLS key")
	sealed, err := s.Close(hsm.NewSecret(bytes.Clone(secret)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:len(sealed)-1])
	f.Add([]byte("age-encryption.org/v1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := s.Open(b)
		if err != nil && !errors.Is(err, ErrSeal) {
			t.Errorf("%v is not ErrSeal", err)
		}
		if err == nil && !bytes.Equal(got.Reveal(), secret) && bytes.HasPrefix(b, sealed[:64]) {
			t.Error("a changed file opens")
		}
	})
}

// FuzzIdentityFile: the file that holds a seal's identity.
func FuzzIdentityFile(f *testing.F) {
	dir := f.TempDir()
	if _, err := NewFile(dir); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append([]byte("# a comment\n"), good...))
	f.Add([]byte("AGE-SECRET-KEY-1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), FileName)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenIdentity(path)
		if err != nil {
			if !errors.Is(err, ErrSeal) {
				t.Errorf("%v is not ErrSeal", err)
			}
			return
		}
		sealed, err := s.Close(hsm.NewSecret([]byte("x")))
		if err == nil {
			_, err = s.Open(sealed)
		}
		if err != nil {
			t.Errorf("a seal that does not open what it closed: %v", err)
		}
	})
}
