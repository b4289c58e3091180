package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// The folders of a repository.
const (
	PackPrefix     = "packs/"
	IndexPrefix    = "index/"
	EnvelopePrefix = "envelopes/"
	ManifestPrefix = "manifests/"
	MarkPrefix     = "marks/"
	VerifiedPrefix = "verified/"
	CopyPrefix     = "copies/"
)

// The first lines.
const (
	packHeader     = "hsmbackup pack v1\n"
	indexHeader    = "hsmbackup index v1\n"
	envelopeHeader = "hsmbackup envelope v1\n"
	manifestHeader = "hsmbackup manifest v1\n"
	markHeader     = "hsmbackup mark v1\n"
	verifiedHeader = "hsmbackup verified v1\n"
	copyHeader     = "hsmbackup copy v1\n"
)

// Name is the SHA-256 of an object's stored bytes, and so its name.
type Name [32]byte

// NameOf names stored bytes.
func NameOf(stored []byte) Name { return sha256.Sum256(stored) }

// String prints 64 hexadecimal digits.
func (n Name) String() string { return hex.EncodeToString(n[:]) }

// PackPath, IndexPath and EnvelopePath return where an object lies.
func PackPath(n Name) string     { s := n.String(); return PackPrefix + s[:2] + "/" + s }
func IndexPath(n Name) string    { return IndexPrefix + n.String() }
func EnvelopePath(n Name) string { return EnvelopePrefix + n.String() }

// IsPackPath, IsIndexPath and IsEnvelopePath tell whether a path is one that a writer makes.
func IsPackPath(path string) bool {
	s, ok := strings.CutPrefix(path, PackPrefix)
	return ok && len(s) == 2+1+64 && s[2] == '/' && isName(s[3:]) && s[:2] == s[3:5]
}

func IsIndexPath(path string) bool {
	s, ok := strings.CutPrefix(path, IndexPrefix)
	return ok && isName(s)
}

func IsEnvelopePath(path string) bool {
	s, ok := strings.CutPrefix(path, EnvelopePrefix)
	return ok && isName(s)
}

// ParseObjectPath reads the hash out of a path that a manifest names; kind is 0
// for a pack, 1 for an index, 2 for an envelope.
func ParseObjectPath(path string) (hash Name, kind int) {
	switch {
	case IsIndexPath(path):
		kind = 1
	case IsEnvelopePath(path):
		kind = 2
	}
	b, err := hex.DecodeString(path[max(0, len(path)-2*len(hash)):])
	if err == nil && len(b) == len(hash) {
		hash = Name(b)
	}
	return hash, kind
}

func isName(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == len(Name{}) && hex.EncodeToString(b) == s
}

// ManifestPath returns where the manifest of a sequence number lies.
func ManifestPath(sequence uint64) string { return ManifestPrefix + ID(sequence) }

// ID prints a sequence number as the ten digits that identify a snapshot.
func ID(sequence uint64) string { return fmt.Sprintf("%010d", sequence) }

// ParseID reads a snapshot's id; leading zeros may be left out. ErrCorrupt is
// never returned: ok tells whether it is one.
func ParseID(s string) (sequence uint64, ok bool) {
	v, err := strconv.ParseUint(s, 10, 64)
	return v, err == nil && v > 0 && v <= MaxSequence && len(s) <= 10 && s[0] != '+'
}

// ParseManifestPath reads the sequence number out of a manifest's path.
func ParseManifestPath(path string) (sequence uint64, ok bool) {
	s, ok := strings.CutPrefix(path, ManifestPrefix)
	if !ok || len(s) != 10 {
		return 0, false
	}
	return ParseID(s)
}

// cutHeader takes the first line off and refuses any but the wanted one.
func cutHeader(stored []byte, want string) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(stored, []byte(want)); ok {
		return rest, nil
	}
	return nil, headerError(stored, want)
}

// headerError tells another version of the format from bytes that never were
// one: software that is too old is upgraded, damage is restored from a copy.
func headerError(stored []byte, want string) error {
	line, _, found := bytes.Cut(stored[:min(len(stored), 64)], []byte("\n"))
	kind, _, _ := strings.Cut(strings.TrimPrefix(want, "hsmbackup "), " ")
	number, isKind := bytes.CutPrefix(line, []byte("hsmbackup "+kind+" v"))
	if v, err := strconv.ParseUint(string(number), 10, 32); found && isKind && err == nil && v > 1 {
		return fmt.Errorf("%w: %s of version %d; this software knows version 1", ErrVersion, kind, v)
	}
	return fmt.Errorf("%w: does not begin as %s does", ErrCorrupt, article(kind))
}

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}
