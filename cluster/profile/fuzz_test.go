package profile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzProfile: a profile either is refused as ErrInvalid, or is one that can be
// saved and read again.
func FuzzProfile(f *testing.F) {
	file := filepath.Join(f.TempDir(), FileName)
	if err := testProfile(f).Save(file); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte("name: [\n"))
	f.Add([]byte("a: &a [x]\nb: [*a, *a]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		again := filepath.Join(t.TempDir(), FileName)
		if err := p.Save(again); err != nil {
			t.Fatalf("cannot be saved: %v", err)
		}
		if _, err := Load(again); err != nil {
			t.Fatalf("saved, and not read again: %v", err)
		}
	})
}

// FuzzConfig: the user's configuration file.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("clusters:\n  east: /srv/east\n"))
	f.Add([]byte("clusters: east\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := decode(b, &Config{}); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%v is not ErrInvalid", err)
		}
	})
}
