package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/backup/format"
)

// Recipient and Identity are age's: whom to encrypt to, and who decrypts.
type (
	Recipient = age.Recipient
	Identity  = age.Identity
)

// Bounds of what people hand in.
const (
	maxIdentityFile = 1 << 20
	maxRecipients   = 64
)

// ParseRecipient reads an X25519 recipient (age1…), a hybrid post-quantum one
// (age1pq1…), a tagged one (age1tag1…, age1tagpq1…), one of an age plugin
// (age1NAME1…), or an ssh-ed25519 or ssh-rsa public key. ErrRecipient.
func ParseRecipient(s string) (Recipient, error) {
	s = strings.TrimSpace(s)
	shown := fmt.Sprintf("%.24q", s)
	if len(s) > format.MaxRecipientText || strings.ContainsAny(s, "\r\n") {
		return nil, fmt.Errorf("%w: recipient %s… is too long", ErrRecipient, shown)
	}
	var r Recipient
	var err error
	switch {
	case strings.HasPrefix(s, "AGE-SECRET-KEY-"):
		return nil, fmt.Errorf("%w: this is an identity, which must stay secret; its recipient is the line \"# public key:\" of its file", ErrRecipient)
	case strings.HasPrefix(s, "age1pq1"):
		r, err = age.ParseHybridRecipient(s)
	case strings.HasPrefix(s, "age1") && isPlugin(s):
		r, err = parseOtherRecipient(s)
	case strings.HasPrefix(s, "age1"):
		r, err = age.ParseX25519Recipient(s)
	case strings.HasPrefix(s, "ssh-"):
		r, err = parseSSHRecipient(s)
	default:
		return nil, fmt.Errorf("%w: recipient %s: want age1…, age1pq1…, age1tag1…, age1PLUGIN1…, ssh-ed25519 or ssh-rsa", ErrRecipient, shown)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: recipient %s…: %w", ErrRecipient, shown, err)
	}
	return r, nil
}

// ParseRecipients reads recipients for one file. Hybrid recipients do not mix
// with others: age refuses it, since the weakest recipient would decide.
func ParseRecipients(texts []string) ([]Recipient, error) {
	if len(texts) == 0 || len(texts) > maxRecipients {
		return nil, fmt.Errorf("%w: %d recipients: want 1 to %d", ErrRecipient, len(texts), maxRecipients)
	}
	var out []Recipient
	hybrid := 0
	for _, s := range texts {
		r, err := ParseRecipient(s)
		if err != nil {
			return nil, err
		}
		if postQuantum(r) {
			hybrid++
		}
		out = append(out, r)
	}
	if hybrid != 0 && hybrid != len(out) {
		return nil, fmt.Errorf("%w: post-quantum recipients (age1pq1…, age1tagpq1…) do not mix with others: the others would decide how safe the data is", ErrRecipient)
	}
	return out, nil
}

// ParseIdentityFile reads the identities of a file as age-keygen writes it
// (AGE-SECRET-KEY-1…, AGE-SECRET-KEY-PQ-1…, AGE-PLUGIN-…, comments, empty lines), or of an
// unencrypted OpenSSH or PEM private key. ErrRecipient, without its contents.
func ParseIdentityFile(data []byte) ([]Identity, error) {
	if len(data) > maxIdentityFile {
		return nil, fmt.Errorf("%w: an identity file of %d bytes, at most %d", ErrRecipient, len(data), maxIdentityFile)
	}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
		id, err := parseSSHIdentity(data)
		if err != nil {
			return nil, fmt.Errorf("%w: the ssh private key is of an unknown type, damaged, or has a passphrase; write it again without one (ssh-keygen -p)", ErrRecipient)
		}
		return []Identity{id}, nil
	}
	var out []Identity
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxIdentityFile+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, err := parseIdentity(line)
		if err != nil {
			return nil, fmt.Errorf("identity file, line %d: %w", n, err)
		}
		out = append(out, id)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: the identity file holds no identity", ErrRecipient)
	}
	return out, nil
}

// parseIdentity keeps the parser's error to itself: it may quote the secret.
func parseIdentity(line string) (Identity, error) {
	var id Identity
	var err error
	switch {
	case strings.HasPrefix(line, "AGE-SECRET-KEY-PQ-1"):
		id, err = age.ParseHybridIdentity(line)
	case strings.HasPrefix(line, "AGE-SECRET-KEY-1"):
		id, err = age.ParseX25519Identity(line)
	case strings.HasPrefix(line, "AGE-PLUGIN-"):
		id, err = parsePluginIdentity(line)
	default:
		return nil, fmt.Errorf("%w: want AGE-SECRET-KEY-1…, AGE-SECRET-KEY-PQ-1… or AGE-PLUGIN-…", ErrRecipient)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the identity is damaged", ErrRecipient)
	}
	return id, nil
}

// fingerprint identifies a set of recipients and a threshold.
func fingerprint(texts []string, threshold int) [32]byte {
	sorted := make([]string, len(texts))
	for i, s := range texts {
		sorted[i] = strings.TrimSpace(s)
	}
	slices.Sort(sorted)
	h := sha256.New()
	var n [8]byte
	for _, v := range append([]string{"hsmbackup recipients v1"}, sorted...) {
		binary.BigEndian.PutUint64(n[:], uint64(len(v)))
		h.Write(n[:])
		h.Write([]byte(v))
	}
	binary.BigEndian.PutUint64(n[:], uint64(threshold))
	h.Write(n[:])
	return [32]byte(h.Sum(nil))
}

// checkCustodians refuses a set of custodians that could not open an envelope.
func checkCustodians(custodians []string, threshold int) ([]Recipient, error) {
	switch {
	case len(custodians) == 0:
		return nil, fmt.Errorf("%w: no custodian: the masking key could never be recovered; name at least one (--custodian)", ErrRecipient)
	case len(custodians) > format.MaxCustodians:
		return nil, fmt.Errorf("%w: %d custodians, at most %d", ErrRecipient, len(custodians), format.MaxCustodians)
	case threshold < 1 || threshold > len(custodians):
		return nil, fmt.Errorf("%w: threshold %d of %d custodians", ErrRecipient, threshold, len(custodians))
	}
	seen := map[string]bool{}
	var out []Recipient
	for _, s := range custodians {
		s = strings.TrimSpace(s)
		if seen[s] {
			return nil, fmt.Errorf("%w: custodian %.24q… is named twice", ErrRecipient, s)
		}
		seen[s] = true
		r, err := ParseRecipient(s)
		if err != nil {
			return nil, fmt.Errorf("custodian: %w", err)
		}
		out = append(out, r)
	}
	return out, nil
}
