package format

import (
	"bytes"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

var (
	encMode = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, IndefLength: cbor.IndefLengthForbidden, NilContainers: cbor.NilContainerAsEmpty}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, MaxNestedLevels: 6, MaxArrayElements: MaxPacks, MaxMapPairs: 1024, UTF8: cbor.UTF8RejectInvalid,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// decodeCanonical decodes b and refuses it unless encoding gives b again:
// unknown fields, a second encoding of one value, trailing bytes.
func decodeCanonical(b []byte, into any) error {
	if err := decMode.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: does not decode: %w", ErrCorrupt, err)
	}
	again, err := encMode.Marshal(into)
	if err != nil || !bytes.Equal(again, b) {
		return fmt.Errorf("%w: is not canonically encoded", ErrCorrupt)
	}
	return nil
}

// version is read alone, before a body whose other fields may be unknown.
type version struct {
	Version uint64 `cbor:"1,keyasint"`
}

var versionMode = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, MaxArrayElements: MaxPacks, MaxMapPairs: 1024}.DecMode())

// checkVersion tells software that is too old from damage. Versions from oldest
// to known are read.
func checkVersion(body []byte, what string, oldest, known uint64) error {
	var v version
	if err := versionMode.Unmarshal(body, &v); err != nil {
		return fmt.Errorf("%w: %s does not decode: %w", ErrCorrupt, what, err)
	}
	if v.Version > known {
		return fmt.Errorf("%w: %s of version %d; this software knows version %d", ErrVersion, what, v.Version, known)
	}
	if v.Version < oldest {
		return fmt.Errorf("%w: %s of version %d", ErrCorrupt, what, v.Version)
	}
	return nil
}
