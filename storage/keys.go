package storage

import "fmt"

// Keys are the access key, secret key and optional session token of an S3
// account. They format as "[keys of ACCESSKEY]" with every verb and cannot be
// marshalled, so that the secret ends up in no log and no error. The zero Keys
// mean: take them from the environment.
type Keys struct{ v *keys }

type keys struct{ access, secret, session string }

// NewKeys returns Keys; session may be empty.
func NewKeys(access, secret, session string) Keys {
	return Keys{&keys{access, secret, session}}
}

// IsZero reports whether no keys were given.
func (k Keys) IsZero() bool { return k.v == nil }

// Reveal returns access key, secret key and session token for the client library.
func (k Keys) Reveal() (access, secret, session string) {
	if k.v == nil {
		return "", "", ""
	}
	return k.v.access, k.v.secret, k.v.session
}

// Format writes the access key only, whatever the verb.
func (k Keys) Format(f fmt.State, _ rune) {
	if k.v == nil {
		fmt.Fprint(f, "[no keys]")
		return
	}
	fmt.Fprintf(f, "[keys of %s]", k.v.access)
}

// MarshalText refuses: secrets are not written.
func (k Keys) MarshalText() ([]byte, error) {
	return nil, fmt.Errorf("%v cannot be marshalled", k)
}
