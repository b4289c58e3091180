package pkcs11

import "github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"

// Bounds of what operations in parts and searches keep in the daemon: those of one
// application, and of all. A session alone keeps little, but an application may have
// MaxSessions of them, each with an operation of each kind.
const (
	maxHeld    = 64 << 20
	maxHeldAll = 1 << 30
)

// weight is what the session keeps, in bytes. turn is held.
func (s *session) weight() int64 {
	n := 0
	if s.find != nil {
		n = 8 * s.find.found
	}
	for _, op := range s.ops {
		if op != nil {
			n += cap(op.buf) + cap(op.out)
		}
		if op != nil && op.stream != nil {
			n += cap(op.stream.rest)
		}
	}
	return int64(n)
}

// account notes what the session keeps after a call. If that is too much, what it has
// under way ends: CKR_DEVICE_MEMORY. turn is held.
func (s *session) account() error {
	grown := s.weigh()
	if grown <= 0 || s.app.held.Load() <= maxHeld && s.app.d.held.Load() <= maxHeldAll {
		return nil
	}
	s.app.log.Warn("an application keeps too much data in operations and searches under way", "bytes", s.app.held.Load(), "of_all", s.app.d.held.Load())
	s.drop()
	return ck.DeviceMemory
}

// drop ends what the session has under way. turn is held.
func (s *session) drop() {
	s.ops, s.find = [opKinds]*operation{}, nil
	s.weigh()
}

// weigh brings the sums up to date, and returns by how much they have grown.
func (s *session) weigh() (grown int64) {
	n := s.weight()
	grown, s.held = n-s.held, n
	s.app.held.Add(grown)
	s.app.d.held.Add(grown)
	return grown
}
