package soft

import (
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// tallyAtOnce is how many objects are added at a time: few enough to stay in the cache.
const tallyAtOnce = 256

// tally adds many objects, none of which it holds, to a state.
type tally struct {
	state *reconcile.State
	some  []hsm.Object // not yet in state
}

// newTally counts from an empty state on.
func newTally(keys hsm.FingerprintKeys) *tally {
	return &tally{state: reconcile.NewState(keys, 0), some: make([]hsm.Object, 0, tallyAtOnce)}
}

func (t *tally) add(o hsm.Object) {
	if t.some = append(t.some, o); len(t.some) == cap(t.some) {
		t.sum()
	}
}

// sum returns the state of all that was added.
func (t *tally) sum() *reconcile.State {
	t.state.AddAll(t.some)
	t.some = t.some[:0]
	return t.state
}
