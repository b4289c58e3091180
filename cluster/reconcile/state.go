package reconcile

import (
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// State is what a source keeps to be an hsm.Sketcher: root and sketch prefix,
// both of one moment. It is safe for concurrent use.
type State struct {
	mu     sync.Mutex
	root   *RootState
	prefix *Prefix
}

// NewState returns the state of a source that holds nothing. prefix is the
// number of cells to keep; 0 or less means DefaultPrefix.
func NewState(keys hsm.FingerprintKeys, prefix int) *State {
	return &State{root: NewRootState(keys), prefix: NewPrefix(keys, prefix)}
}

// Update replaces an object: nil stands for an object that was not there
// before, or is not there any more. The caller sees to it that before is what the
// source held; Update neither knows nor checks.
func (s *State) Update(before, after *hsm.Object) {
	var was, is Item
	if before != nil {
		was = ItemOf(*before)
	}
	if after != nil {
		is = ItemOf(*after)
	}
	if was == is && (before == nil) == (after == nil) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if before != nil {
		s.root.Remove(was)
		s.prefix.Remove(was)
	}
	if after != nil {
		s.root.Add(is)
		s.prefix.Add(is)
	}
}

// AddAll adds objects, each as Update does, in less time.
func (s *State) AddAll(objects []hsm.Object) {
	items := make([]Item, len(objects))
	for i, o := range objects {
		items[i] = ItemOf(o)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, item := range items {
		s.root.Add(item)
	}
	s.prefix.AddAll(items)
}

// Root returns the root of this moment.
func (s *State) Root() hsm.Root {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.root.Root()
}

// Cells returns the prefix of this moment, which the caller does not change.
func (s *State) Cells() []hsm.Cell {
	_, cells := s.Snapshot()
	return cells
}

// Snapshot returns root and prefix of one moment; the caller does not change them.
func (s *State) Snapshot() (hsm.Root, []hsm.Cell) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.root.Root(), s.prefix.Cells()
}

// Join adds all that another source holds. The caller sees to it that no object
// is in both, and that both keep equally many cells. Root and sketch are linear,
// so that workers compute shares of one state.
func (s *State) Join(other *State) {
	root, cells := other.Snapshot()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root.join(root)
	s.prefix.join(cells)
}
