package format

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"
	"unicode"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ManifestVersion is the version of the manifest's body.
const ManifestVersion = 1

// Manifest is the table of contents of a snapshot.
type Manifest struct {
	Sequence     uint64
	Started      time.Time // every key acknowledged before is in it
	Created      time.Time
	Lineage      hsm.Lineage
	Cluster      hsm.ClusterID
	ClusterName  string
	Region       string
	Parent       uint64 // the snapshot it is an increment to; 0: full
	Fingerprints hsm.FingerprintKeys
	Root         hsm.Root
	Live         map[hsm.Kind]uint64 // objects that are no tombstones
	Tombstones   uint64
	Cells        []hsm.Cell // sketch prefix
	Packs        []PackEntry
	Envelope     Name
	Custody      [32]byte // fingerprint of the custodians and the threshold
	Epoch        uint64   // the newest masking key that any object needs
	Recipients   [32]byte // fingerprint of the recipients of all packs
	Answered     []hsm.HSMID
	Missing      []hsm.HSMID
	Covers       []hsm.HSMID // HSMs known to hold all that the snapshot holds
	Unsettled    []Version   // states that may not be in the root's
	Tags         map[string]string
	Software     string
}

// PackEntry names one pack and its index. The items of a later pack replace
// those of an earlier one, except that an alternate pack replaces nothing: it
// only holds states that Manifest.Unsettled lists.
type PackEntry struct {
	Pack      Name
	Size      uint64
	Objects   uint64
	Index     Name
	IndexSize uint64
	Alternate bool
}

// Version is one state of an object and the HSM that showed it.
type Version struct {
	Ref    hsm.KeyRef
	Digest hsm.Digest
	HSM    hsm.HSMID
}

type manifestFile struct {
	_         struct{} `cbor:",toarray"`
	Body      []byte
	Public    []byte
	Signature []byte
}

type manifestBody struct {
	Version     uint64              `cbor:"1,keyasint"`
	Sequence    uint64              `cbor:"2,keyasint"`
	Started     uint64              `cbor:"3,keyasint"`
	Created     uint64              `cbor:"4,keyasint"`
	Lineage     []byte              `cbor:"5,keyasint"`
	Cluster     uint64              `cbor:"6,keyasint"`
	ClusterName string              `cbor:"7,keyasint"`
	Region      string              `cbor:"8,keyasint"`
	Parent      uint64              `cbor:"9,keyasint,omitempty"`
	RootKey     []byte              `cbor:"10,keyasint"`
	SketchKey   []byte              `cbor:"11,keyasint"`
	RootSum     []byte              `cbor:"12,keyasint"`
	RootCount   uint64              `cbor:"13,keyasint"`
	Live        map[hsm.Kind]uint64 `cbor:"14,keyasint,omitempty"`
	Tombstones  uint64              `cbor:"15,keyasint,omitempty"`
	Cells       []byte              `cbor:"16,keyasint"`
	Packs       []packBody          `cbor:"17,keyasint,omitempty"`
	Envelope    []byte              `cbor:"18,keyasint"`
	Custody     []byte              `cbor:"19,keyasint"`
	Epoch       uint64              `cbor:"20,keyasint,omitempty"`
	Recipients  []byte              `cbor:"21,keyasint"`
	Answered    []hsm.HSMID         `cbor:"22,keyasint"`
	Missing     []hsm.HSMID         `cbor:"23,keyasint,omitempty"`
	Covers      []hsm.HSMID         `cbor:"24,keyasint,omitempty"`
	Unsettled   []byte              `cbor:"25,keyasint,omitempty"`
	Tags        map[string]string   `cbor:"26,keyasint,omitempty"`
	Software    string              `cbor:"27,keyasint"`
}

type packBody struct {
	_         struct{} `cbor:",toarray"`
	Pack      []byte
	Size      uint64
	Objects   uint64
	Index     []byte
	IndexSize uint64
	Alternate bool
}

const (
	cellSize    = 24 + 8 + 8
	versionSize = 8 + 16 + 8
)

// EncodeManifestBody returns the bytes that the lineage signs. ErrCorrupt if
// the manifest breaks a rule that DecodeManifest enforces.
func EncodeManifestBody(m *Manifest) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b := manifestBody{
		Version: ManifestVersion, Sequence: m.Sequence, Started: millis(m.Started), Created: millis(m.Created),
		Lineage: m.Lineage[:], Cluster: uint64(m.Cluster), ClusterName: m.ClusterName, Region: m.Region, Parent: m.Parent,
		RootKey: m.Fingerprints.Root[:], SketchKey: m.Fingerprints.Sketch[:], RootSum: m.Root.Sum[:], RootCount: m.Root.Count,
		Live: m.Live, Tombstones: m.Tombstones, Cells: encodeCells(m.Cells), Envelope: m.Envelope[:],
		Custody: m.Custody[:], Epoch: m.Epoch, Recipients: m.Recipients[:],
		Answered: m.Answered, Missing: m.Missing, Covers: m.Covers, Unsettled: encodeVersions(m.Unsettled), Tags: m.Tags, Software: m.Software,
	}
	for _, p := range m.Packs {
		b.Packs = append(b.Packs, packBody{Pack: p.Pack[:], Size: p.Size, Objects: p.Objects, Index: p.Index[:], IndexSize: p.IndexSize, Alternate: p.Alternate})
	}
	return encMode.Marshal(b)
}

// EncodeManifest puts body and signature together into stored bytes.
func EncodeManifest(body []byte, s hsm.LineageSignature) ([]byte, error) {
	b, err := encMode.Marshal(manifestFile{Body: body, Public: s.Public, Signature: s.Signature})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	stored := append([]byte(manifestHeader), b...)
	if len(stored) > MaxManifest {
		return nil, fmt.Errorf("manifest of %d bytes, at most %d", len(stored), MaxManifest)
	}
	return stored, nil
}

// DecodeManifest reads stored bytes. What it returns is a claim until the
// signature over body is verified. ErrVersion, ErrCorrupt.
func DecodeManifest(stored []byte) (m *Manifest, body []byte, s hsm.LineageSignature, err error) {
	if len(stored) > MaxManifest {
		return nil, nil, s, fmt.Errorf("%w: manifest of %d bytes, at most %d", ErrCorrupt, len(stored), MaxManifest)
	}
	b, err := cutHeader(stored, manifestHeader)
	if err != nil {
		return nil, nil, s, err
	}
	var f manifestFile
	if err := decodeCanonical(b, &f); err != nil {
		return nil, nil, s, err
	}
	if err := checkVersion(f.Body, "manifest", ManifestVersion, ManifestVersion); err != nil {
		return nil, nil, s, err
	}
	var w manifestBody
	if err := decodeCanonical(f.Body, &w); err != nil {
		return nil, nil, s, err
	}
	m, err = w.manifest()
	return m, f.Body, hsm.LineageSignature{Public: f.Public, Signature: f.Signature}, err
}

func (b *manifestBody) manifest() (*Manifest, error) {
	sizes := []struct{ got, want int }{
		{len(b.Lineage), 16}, {len(b.RootKey), 32}, {len(b.SketchKey), 16}, {len(b.RootSum), 32}, {len(b.Envelope), 32},
		{len(b.Custody), 32}, {len(b.Recipients), 32}, {len(b.Cells) % cellSize, 0}, {len(b.Unsettled) % versionSize, 0},
	}
	for _, s := range sizes {
		if s.got != s.want {
			return nil, fmt.Errorf("%w: manifest: a field has the wrong size", ErrCorrupt)
		}
	}
	m := &Manifest{
		Sequence: b.Sequence, Started: fromMillis(b.Started), Created: fromMillis(b.Created),
		Lineage: hsm.Lineage(b.Lineage), Cluster: hsm.ClusterID(b.Cluster), ClusterName: b.ClusterName, Region: b.Region, Parent: b.Parent,
		Fingerprints: hsm.FingerprintKeys{Root: [32]byte(b.RootKey), Sketch: [16]byte(b.SketchKey)},
		Root:         hsm.Root{Sum: [32]byte(b.RootSum), Count: b.RootCount},
		Live:         b.Live, Tombstones: b.Tombstones, Cells: decodeCells(b.Cells), Envelope: Name(b.Envelope),
		Custody: [32]byte(b.Custody), Epoch: b.Epoch, Recipients: [32]byte(b.Recipients),
		Answered: b.Answered, Missing: b.Missing, Covers: b.Covers, Unsettled: decodeVersions(b.Unsettled), Tags: b.Tags, Software: b.Software,
	}
	for _, p := range b.Packs {
		if len(p.Pack) != 32 || len(p.Index) != 32 {
			return nil, fmt.Errorf("%w: manifest: the name of a pack has the wrong size", ErrCorrupt)
		}
		m.Packs = append(m.Packs, PackEntry{Pack: Name(p.Pack), Size: p.Size, Objects: p.Objects, Index: Name(p.Index), IndexSize: p.IndexSize, Alternate: p.Alternate})
	}
	return m, m.check()
}

// check holds the rules that a writer and a reader share.
func (m *Manifest) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: manifest: "+format, append([]any{ErrCorrupt}, args...)...)
	}
	switch {
	case m.Sequence == 0 || m.Sequence > MaxSequence:
		return bad("number %d", m.Sequence)
	case m.Parent >= m.Sequence:
		return bad("its parent %d is not older than %d", m.Parent, m.Sequence)
	case m.Cluster == 0:
		return bad("it names no cluster")
	case len(m.Cells) > MaxCells:
		return bad("%d cells, at most %d", len(m.Cells), MaxCells)
	case len(m.Packs) > MaxPacks:
		return bad("%d packs, at most %d", len(m.Packs), MaxPacks)
	case len(m.Answered) == 0 || len(m.Answered)+len(m.Missing) > MaxMembers || len(m.Covers) > MaxMembers:
		return bad("%d HSMs answered, %d did not", len(m.Answered), len(m.Missing))
	case len(m.Unsettled) > MaxUnsettled:
		return bad("%d unsettled states, at most %d", len(m.Unsettled), MaxUnsettled)
	case !slices.IsSortedFunc(m.Unsettled, compareVersions):
		return bad("its unsettled states are out of order")
	case len(m.Tags) > MaxTags:
		return bad("%d tags, at most %d", len(m.Tags), MaxTags)
	}
	if err := m.checkTexts(); err != nil {
		return bad("%w", err)
	}
	if err := m.checkCounts(); err != nil {
		return bad("%w", err)
	}
	return m.checkPacks()
}

func (m *Manifest) checkTexts() error {
	texts := []string{m.ClusterName, m.Region, m.Software}
	for k, v := range m.Tags {
		texts = append(texts, k, v)
		if k == "" {
			return fmt.Errorf("a tag without a name")
		}
	}
	for _, s := range texts {
		if err := CheckText(s); err != nil {
			return err
		}
	}
	return nil
}

// CheckText refuses what would not print on one line.
func CheckText(s string) error {
	if len(s) > MaxText {
		return fmt.Errorf("a text of %d bytes, at most %d", len(s), MaxText)
	}
	return checkPrints(s)
}

func checkPrints(s string) error {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("the text %q has characters that do not print", s)
		}
	}
	return nil
}

func (m *Manifest) checkCounts() error {
	total := m.Tombstones
	for k, n := range m.Live {
		if !storable(k) || n == 0 || n > m.Root.Count {
			return fmt.Errorf("%d objects of %s", n, k)
		}
		total += n
	}
	if total != m.Root.Count {
		return fmt.Errorf("it counts %d objects, its root %d", total, m.Root.Count)
	}
	return nil
}

func (m *Manifest) checkPacks() error {
	seen := make(map[Name]bool, len(m.Packs))
	var objects uint64
	for _, p := range m.Packs {
		if p.Size == 0 || p.Size > MaxStoredPack || p.IndexSize == 0 || p.IndexSize > MaxIndex || p.Objects == 0 || p.Objects > MaxPackObjects || seen[p.Pack] {
			return fmt.Errorf("%w: manifest: pack %s of %d bytes and %d objects", ErrCorrupt, p.Pack, p.Size, p.Objects)
		}
		seen[p.Pack] = true
		if !p.Alternate {
			objects += p.Objects
		}
	}
	if objects < m.Root.Count {
		return fmt.Errorf("%w: manifest: packs of %d objects for a root of %d", ErrCorrupt, objects, m.Root.Count)
	}
	return nil
}

func millis(t time.Time) uint64        { return uint64(max(t.UnixMilli(), 0)) }
func fromMillis(v uint64) time.Time    { return time.UnixMilli(int64(min(v, 1<<52))).UTC() }
func compareVersions(a, b Version) int { return a.Compare(b) }

// Compare orders by reference, then digest, then HSM.
func (v Version) Compare(o Version) int {
	return slices.Compare(encodeVersions([]Version{v}), encodeVersions([]Version{o}))
}

func encodeVersions(vs []Version) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.BigEndian.AppendUint64(b, uint64(v.Ref))
		b = append(b, v.Digest[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(v.HSM))
	}
	return b
}

func decodeVersions(b []byte) (vs []Version) {
	for ; len(b) >= versionSize; b = b[versionSize:] {
		vs = append(vs, Version{
			Ref: hsm.KeyRef(binary.BigEndian.Uint64(b)), Digest: hsm.Digest(b[8:]), HSM: hsm.HSMID(binary.BigEndian.Uint64(b[24:])),
		})
	}
	return vs
}

func encodeCells(cells []hsm.Cell) []byte {
	b := make([]byte, 0, len(cells)*cellSize)
	for _, c := range cells {
		b = append(b, c.Item[:]...)
		b = binary.BigEndian.AppendUint64(b, c.Check)
		b = binary.BigEndian.AppendUint64(b, uint64(c.Count))
	}
	return b
}

func decodeCells(b []byte) []hsm.Cell {
	cells := make([]hsm.Cell, 0, len(b)/cellSize)
	for ; len(b) >= cellSize; b = b[cellSize:] {
		cells = append(cells, hsm.Cell{Item: [24]byte(b), Check: binary.BigEndian.Uint64(b[24:]), Count: int64(binary.BigEndian.Uint64(b[32:]))})
	}
	return cells
}
