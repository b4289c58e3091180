package reconcile

// schedule is a binary heap of found items by the next cell they are mapped to.
type schedule []appointment

type appointment struct {
	mapping
	found int // index of the item in Decoder.found
}

// at returns the first item mapped to cell i, the next to come; nil if none is.
func (s schedule) at(i uint64) *appointment {
	if len(s) == 0 || s[0].index != i {
		return nil
	}
	return &s[0]
}

// advance moves the first item on to its next cell.
func (s schedule) advance() {
	s[0].next()
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(s); c++ {
			if s[c].index < s[least].index {
				least = c
			}
		}
		if least == i {
			return
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
}

func (s *schedule) add(a appointment) {
	*s = append(*s, a)
	h := *s
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if h[parent].index <= h[i].index {
			return
		}
		h[parent], h[i] = h[i], h[parent]
		i = parent
	}
}
