package mech

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// seed adds every key file, as PEM and as DER.
func seed(f *testing.F, add func([]byte)) {
	names, err := filepath.Glob("testdata/openssl/*.pem")
	if err != nil || len(names) < 40 {
		f.Fatalf("%d key files, %v", len(names), err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		add(b)
		add(der(f, filepath.Base(name[:len(name)-len(".pem")])))
	}
}

// What is accepted is written canonically, and the canonical form is accepted and stable.
func FuzzParsePrivate(f *testing.F) {
	seed(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParsePrivate(b)
		if err != nil {
			if k != nil {
				t.Fatal("a key beside an error")
			}
			return
		}
		again, err := ParsePrivate(k.PKCS8())
		if err != nil || !again.Equal(k) || !bytes.Equal(again.Public(), k.Public()) {
			t.Fatalf("the canonical form is not stable: %v", err)
		}
		if err := k.Spec().Validate(); err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePublic(k.Public()); err != nil {
			t.Fatal(err)
		}
	})
}

// A public key has exactly one encoding.
func FuzzParsePublic(f *testing.F) {
	seed(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParsePublic(b)
		if err == nil && !bytes.Equal(k.SPKI(), b) {
			t.Fatal("two encodings of one public key")
		}
	})
}

func FuzzParseImport(f *testing.F) {
	seed(f, func(b []byte) {
		for _, kt := range append([]KeyType{""}, keyTypes...) {
			f.Add(string(kt), b)
		}
	})
	f.Fuzz(func(t *testing.T, kt string, b []byte) {
		got, err := ParseImport(KeyType(kt), b)
		if err != nil {
			return
		}
		if err := got.Spec.Validate(); err != nil {
			t.Fatal(err)
		}
		material := got.Secret
		if got.Class == ClassPublic {
			material = got.Public
		}
		again, err := ParseImport(got.Spec.Type, material)
		if err != nil || again.Class != got.Class || !bytes.Equal(again.Secret, got.Secret) || !bytes.Equal(again.Public, got.Public) {
			t.Fatalf("what was imported does not import again: %v", err)
		}
	})
}

// Unwrapping never panics, and what unwraps under the deterministic mechanisms wraps to the same bytes.
func FuzzUnwrap(f *testing.F) {
	sk := secret(f, AES, make([]byte, 32))
	pk := private(f, "rsa2048")
	ws := wrappers(f, sk, pk)
	for i, w := range ws {
		wrapped, err := w.wrap(make([]byte, 32))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), wrapped)
		f.Add(uint8(i), wrapped[:len(wrapped)-1])
		f.Add(uint8(i), wrapped[:16])
	}
	f.Fuzz(func(t *testing.T, i uint8, b []byte) {
		w := ws[int(i)%len(ws)]
		payload, err := w.unwrap(b)
		if err != nil {
			if payload != nil {
				t.Fatal("bytes beside an error")
			}
			return
		}
		if w.name != AESKW && w.name != AESKWP {
			return
		}
		if again, err := w.wrap(payload); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%s: two encodings of one payload (%v)", w.name, err)
		}
	})
}
