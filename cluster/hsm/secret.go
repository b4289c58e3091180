package hsm

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Secret holds bytes that must not be shown: key material, a password. It
// prints as [redacted] under every verb of fmt and in slog, refuses to be
// marshalled, and compares in constant time with Equal; == does not compile.
//
// Where fmt does not ask for methods (unexported fields of other structs, wrong
// verbs such as %p) it prints an address: it follows at most one pointer, and
// the bytes lie behind two. The zero Secret is empty.
type Secret struct {
	_ [0]func() // incomparable
	p **[]byte
}

// NewSecret wraps b without copying it.
func NewSecret(b []byte) Secret {
	p := &b
	return Secret{p: &p}
}

// Reveal returns the bytes themselves. Every call is a place to look at.
func (s Secret) Reveal() []byte {
	if s.p == nil {
		return nil
	}
	return **s.p
}

func (s Secret) clone() Secret { return NewSecret(bytes.Clone(s.Reveal())) }

// Len returns the number of bytes.
func (s Secret) Len() int { return len(s.Reveal()) }

// Equal compares in constant time.
func (s Secret) Equal(o Secret) bool { return subtle.ConstantTimeCompare(s.Reveal(), o.Reveal()) == 1 }

// Wipe overwrites the bytes with zeros. Copies made elsewhere remain.
func (s Secret) Wipe() { clear(s.Reveal()) }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "[redacted]") }

// String implements fmt.Stringer.
func (s Secret) String() string { return "[redacted]" }

// LogValue is String, for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText refuses, and with it encoding/json.
func (s Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("hsm: a secret is not to be marshalled")
}

// MarshalBinary refuses, and with it gob and CBOR.
func (s Secret) MarshalBinary() ([]byte, error) {
	return nil, errors.New("hsm: a secret is not to be marshalled")
}
