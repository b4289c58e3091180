package hsm

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// check tells why a record has no masked form.
func (r *Record) check() error {
	if err := r.checkShape(); err != nil {
		return err
	}
	valid := validTexts(&r.Core, r.Registers, r.Hidden)
	for _, v := range r.Rivals {
		valid = valid && validTexts(&v.Core, v.Registers)
	}
	if !valid {
		return errors.New("a name is not UTF-8")
	}
	return nil
}

// checkShape is check, but for the names.
func (r *Record) checkShape() error {
	if _, known := kindNames[r.Kind]; !known {
		return errors.New("its kind does not exist")
	}
	if !r.Ref.valid() {
		return errors.New("a reference has 1 to 63 bits")
	}
	if (r.Kind.Scope() == ScopeCluster) != (r.Cluster != 0) {
		return errors.New("objects of a cluster name it, nothing else does")
	}
	if err := r.checkRivals(); err != nil {
		return err
	}
	return r.checkState()
}

// checkState checks what is said of one birth.
func (r *Record) checkState() error {
	if r.Core.Pair != 0 && !r.Core.Pair.valid() {
		return errors.New("a reference has 1 to 63 bits")
	}
	if r.Core.Size < 0 || r.Core.Size > maxSmall {
		return fmt.Errorf("its size is %d", r.Core.Size)
	}
	if r.Destroyed && !r.erased() {
		return errors.New("a tombstone holds its owner and what lasts, no more")
	}
	return nil
}

// erased tells whether the record holds what Destroy leaves, and no more.
func (r *Record) erased() bool {
	for name, reg := range r.Registers {
		if !lasts(r.Kind, name, reg) {
			return false
		}
	}
	return len(r.Hidden) == 0 && r.Material.Len() == 0 && r.Core.equal(&Core{Owner: r.Core.Owner})
}

func validTexts(c *Core, registers ...map[string]Register) bool {
	for _, s := range []string{string(c.Class), c.Type, c.Curve, string(c.Origin), c.Owner} {
		if !utf8.ValidString(s) {
			return false
		}
	}
	for _, m := range registers {
		for name := range m {
			if !utf8.ValidString(name) {
				return false
			}
		}
	}
	return true
}
