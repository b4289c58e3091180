package soft

import (
	"encoding/binary"
	"math"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAbsentForgetsNothing: whatever was added is never called absent, from one filter
// to the next, and with several who add; of what was not, nearly all is.
func TestAbsentForgetsNothing(t *testing.T) {
	for _, limit := range []int{1 << 30, 1 << 12} {
		a := newAbsent(limit)
		const each = 40_000
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Go(func() {
				for i := range each {
					ref := hsm.KeyRef(3*i + w)
					a.add(objectKey(hsm.ScopeLineage, ref))
					if a.surely(objectKey(hsm.ScopeLineage, ref)) {
						t.Errorf("%s is called absent at once", ref)
						return
					}
				}
			})
		}
		wg.Wait()
		wrong := 0
		for i := range hsm.KeyRef(3 * each) {
			if a.surely(objectKey(hsm.ScopeLineage, i)) {
				t.Fatalf("limit %d: %s is called absent", limit, i)
			}
			if !a.surely(objectKey(hsm.ScopeLineage, i+1<<40)) {
				wrong++
			}
		}
		if limit > 3*each && wrong > 3*each/20 {
			t.Errorf("%d of %d that were not added are not called absent", wrong, 3*each)
		}
	}
}

func BenchmarkAbsent(b *testing.B) {
	a := newAbsent(math.MaxInt)
	key := opKey(prefixMark, hsm.OpID{})
	next := func(i, last int) []byte {
		binary.LittleEndian.PutUint64(key[1:], uint64(i))
		key[len(key)-1] = byte(last)
		return key
	}
	a.expect(1 << 20)
	for i := range 1 << 20 {
		a.add(next(i, 0))
	}
	for i := 0; b.Loop(); i++ {
		a.surely(next(i%(1<<20), 1))
	}
}
