package cluster

import (
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Token keys are forgotten when there are too many, and session keys never, also where
// these alone are too many.
func TestCoverageIsBounded(t *testing.T) {
	on := []hsm.HSMID{hsm.NewHSMID()}
	for name, sessionKeys := range map[string]int{"token keys": 0, "half session keys": maxCovered / 2, "too many session keys": maxCovered + 5000} {
		t.Run(name, func(t *testing.T) {
			cc, next := newCoverageCache(), hsm.KeyRef(1)
			put := func(n int, session bool) {
				for range n {
					cc.put(next, covered{holders: on, session: session})
					if !cc.keys[next].on(on[0]) {
						t.Fatalf("key %s was forgotten at once", next)
					}
					next++
				}
			}
			put(sessionKeys, true)
			put(maxCovered+5000, false)
			kept := map[bool]int{}
			for _, k := range cc.keys {
				kept[k.session]++
			}
			if kept[true] != sessionKeys {
				t.Errorf("%d session keys are known, want %d", kept[true], sessionKeys)
			}
			// With so many looks at least one key in trimLooks can stay for each that does
			// not; eight times as many are far beyond chance.
			if most := max(maxCovered-sessionKeys, 8*len(cc.keys)/trimLooks); kept[false] > most+1 {
				t.Errorf("%d token keys are known, want at most %d", kept[false], most)
			}
		})
	}
}
