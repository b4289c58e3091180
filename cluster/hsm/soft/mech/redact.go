package mech

import (
	"encoding/json"
	"fmt"
	"io"
)

// redacted is what a key prints as: its kind, never its bytes.
func (s Spec) redacted(what string) string {
	switch {
	case s.Type == "":
		return "[redacted " + what + "]"
	case s.Curve != "":
		return fmt.Sprintf("[redacted %s %s %s]", what, s.Type, s.Curve)
	}
	return fmt.Sprintf("[redacted %s %s %d]", what, s.Type, s.Size)
}

// Format writes "[redacted …]" under every verb.
func (k PrivateKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// String returns "[redacted …]".
func (k PrivateKey) String() string { return k.Spec().redacted("private key") }

// GoString returns "[redacted …]".
func (k PrivateKey) GoString() string { return k.String() }

// MarshalJSON writes "[redacted …]".
func (k PrivateKey) MarshalJSON() ([]byte, error) { return json.Marshal(k.String()) }

// Format writes "[redacted …]" under every verb. A public key is no secret, but
// one rule for all keys is easier to trust.
func (k PublicKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// String returns "[redacted …]".
func (k PublicKey) String() string { return k.Spec().redacted("public key") }

// GoString returns "[redacted …]".
func (k PublicKey) GoString() string { return k.String() }

// MarshalJSON writes "[redacted …]".
func (k PublicKey) MarshalJSON() ([]byte, error) { return json.Marshal(k.String()) }

// Format writes "[redacted …]" under every verb.
func (k SecretKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// String returns "[redacted …]".
func (k SecretKey) String() string { return k.Spec().redacted("secret key") }

// GoString returns "[redacted …]".
func (k SecretKey) GoString() string { return k.String() }

// MarshalJSON writes "[redacted …]".
func (k SecretKey) MarshalJSON() ([]byte, error) { return json.Marshal(k.String()) }

// Format writes "[redacted …]" under every verb.
func (g Generated) Format(f fmt.State, _ rune) { io.WriteString(f, g.String()) }

// String returns "[redacted …]".
func (g Generated) String() string { return g.Spec.redacted("generated key") }

// GoString returns "[redacted …]".
func (g Generated) GoString() string { return g.String() }

// MarshalJSON writes "[redacted …]".
func (g Generated) MarshalJSON() ([]byte, error) { return json.Marshal(g.String()) }

// Format writes "[redacted …]" under every verb.
func (i Imported) Format(f fmt.State, _ rune) { io.WriteString(f, i.String()) }

// String returns "[redacted …]".
func (i Imported) String() string { return i.Spec.redacted("imported key") }

// GoString returns "[redacted …]".
func (i Imported) GoString() string { return i.String() }

// MarshalJSON writes "[redacted …]".
func (i Imported) MarshalJSON() ([]byte, error) { return json.Marshal(i.String()) }

// hide puts the contents of a key behind a function. fmt calls no methods on a key in an
// unexported field of a caller's struct, and under %s it follows even a nested
// pointer; of a function it prints no more than an address.
func hide[T any](contents *T) func() *T { return func() *T { return contents } }
