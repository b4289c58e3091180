package hsm

import (
	"bytes"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// The general CBOR library in core deterministic mode, for what is rare.
var (
	encMode = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, ShortestFloat: cbor.ShortestFloat16, IndefLength: cbor.IndefLengthForbidden, NilContainers: cbor.NilContainerAsEmpty}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, MaxNestedLevels: 8, MaxArrayElements: 4096, MaxMapPairs: 4096, UTF8: cbor.UTF8RejectInvalid,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// decodeCanonical decodes b and refuses it unless encoding gives b again.
func decodeCanonical(b []byte, into any) error {
	if err := decMode.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: does not decode", ErrCorrupt)
	}
	again, err := encMode.Marshal(into)
	if err != nil || !bytes.Equal(again, b) {
		return fmt.Errorf("%w: is not canonically encoded", ErrCorrupt)
	}
	return nil
}
