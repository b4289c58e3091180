package rpc

import (
	"math"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Everything that comes over the wire is checked here before anyone acts on
// it: sizes, ranges, counts. What the values mean is the HSM's to judge.

// checker collects the first refusal of a message.
type checker struct{ err error }

func (c *checker) fail(format string, args ...any) {
	if c.err == nil {
		c.err = invalid(format, args...)
	}
}

func (c *checker) note(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *checker) count(what string, n, most int) {
	if n > most {
		c.fail("%d %s, at most %d", n, what, most)
	}
}

// size is count of the bytes of what; it makes no text of those that fit.
func (c *checker) size(what string, n, most int) {
	if n > most {
		c.count("bytes of "+what, n, most)
	}
}

func (c *checker) text(what, s string, most int) string {
	c.size(what, len(s), most)
	return s
}

func (c *checker) bytes(what string, b []byte, most int) []byte {
	c.size(what, len(b), most)
	return b
}

func (c *checker) word(what, s string) string { return c.text(what, s, maxWord) }
func (c *checker) name(what, s string) string { return c.text(what, s, maxName) }

func (c *checker) texts(what string, s []string, items, most int) []string {
	c.count(what, len(s), items)
	for _, one := range s {
		if len(one) > most {
			c.count("bytes in one of "+what, len(one), most)
		}
	}
	return s
}

func (c *checker) small(what string, v int64) int {
	if v < math.MinInt32 || v > math.MaxInt32 {
		c.fail("%s %d is out of range", what, v)
		return 0
	}
	return int(v)
}

func (c *checker) lease(ns int64) time.Duration {
	d := time.Duration(ns)
	if d < 0 || d > maxLease {
		c.fail("lease of %s: want 0 to %s", d, maxLease)
	}
	return d
}

func (c *checker) ref(v uint64) hsm.KeyRef {
	c.note(checkRef(hsm.KeyRef(v)))
	return hsm.KeyRef(v)
}

// noneOrRef lets zero stand for none.
func (c *checker) noneOrRef(v uint64) hsm.KeyRef {
	if v == 0 {
		return 0
	}
	return c.ref(v)
}

func (c *checker) refs(what string, v []uint64, most int) []hsm.KeyRef {
	c.count(what, len(v), most)
	if c.err != nil || len(v) == 0 {
		return nil
	}
	out := make([]hsm.KeyRef, len(v))
	for i, ref := range v {
		out[i] = c.ref(ref)
	}
	return out
}

// values converts a table of attributes; an absent one stays nil.
func (c *checker) values(what string, m map[string][]byte) map[string]string {
	c.count(what, len(m), maxAttributes)
	if c.err != nil || m == nil {
		return nil
	}
	out := make(map[string]string, len(m))
	for name, v := range m {
		if len(name) > maxWord || len(v) > maxValue {
			c.word("name of "+what, name)
			c.count("bytes in one of "+what, len(v), maxValue)
		}
		out[name] = string(v)
	}
	return out
}

func checkRef(r hsm.KeyRef) error {
	if r == 0 || r>>63 != 0 {
		return invalid("key reference %s: want 1 to 63 bits", r)
	}
	return nil
}

// fixed checks the length of a field of N bytes.
func fixed[A ~[16]byte](c *checker, what string, b []byte) (a A) {
	if len(b) != len(a) {
		c.fail("%s of %d bytes, want %d", what, len(b), len(a))
		return a
	}
	return A(b)
}

func fixed32(c *checker, what string, b []byte) (a [32]byte) {
	if len(b) != len(a) {
		c.fail("%s of %d bytes, want %d", what, len(b), len(a))
		return a
	}
	return [32]byte(b)
}

func checkScope(v uint32) (hsm.Scope, error) {
	if v > uint32(hsm.ScopeCluster) {
		return 0, invalid("scope %d does not exist", v)
	}
	return hsm.Scope(v), nil
}

func toTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
