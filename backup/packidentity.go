package backup

import (
	"fmt"
	"strings"

	"filippo.io/age"
	"github.com/decred/dcrd/bech32"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The kinds of the lineage's own pack identities. Packs are encrypted to the
// hybrid one, or to the other where the named recipients are not post-quantum,
// since age does not mix the two.
const (
	packHybrid = "mlkem768x25519"
	packX25519 = "x25519"
)

// packIdentities derives the lineage's own identities, which read every pack of
// its snapshots: hybrid, then X25519. An age identity is the bech32 form
// (BIP 173) of a 32-byte seed, for X25519 of the scalar (RFC 7748).
func packIdentities(k *hsm.Keyring) (*age.HybridIdentity, *age.X25519Identity, error) {
	hybrid, err := ageIdentity(k, packHybrid, "age-secret-key-pq-", age.ParseHybridIdentity)
	if err != nil {
		return nil, nil, err
	}
	classic, err := ageIdentity(k, packX25519, "age-secret-key-", age.ParseX25519Identity)
	return hybrid, classic, err
}

// ageIdentity keeps the parser's error to itself: it may quote the secret.
func ageIdentity[T any](k *hsm.Keyring, kind, hrp string, parse func(string) (T, error)) (id T, err error) {
	seed := k.PackSeed(kind)
	defer seed.Wipe()
	text, err := bech32.EncodeFromBase256(hrp, seed.Reveal())
	if err == nil {
		id, err = parse(strings.ToUpper(text))
	}
	if err != nil {
		return id, fmt.Errorf("%w: the lineage's %s identity cannot be derived", hsm.ErrInvalid, kind)
	}
	return id, nil
}

// packRecipients are the public halves of packIdentities.
func packRecipients(k *hsm.Keyring) ([]string, error) {
	hybrid, classic, err := packIdentities(k)
	if err != nil {
		return nil, err
	}
	return []string{hybrid.Recipient().String(), classic.Recipient().String()}, nil
}

// withLineage adds to the named recipients the one of the lineage's own that age
// mixes with them. The lineage's come from an envelope; one of an older format
// has none, and then somebody must be named. ErrRecipient.
func withLineage(named, lineage []string) ([]string, error) {
	if len(lineage) == 0 {
		return named, nil
	}
	if len(named) == 0 {
		return lineage[:1], nil
	}
	parsed, err := ParseRecipients(named)
	if err != nil {
		return nil, err
	}
	hybrid := postQuantum(parsed[0])
	for _, text := range lineage {
		r, err := ParseRecipient(text)
		if err != nil {
			return nil, err
		}
		if postQuantum(r) == hybrid {
			return append([]string{text}, named...), nil
		}
	}
	return named, nil
}
