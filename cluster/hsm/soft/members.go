package soft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The registers of a member. Those below the first four are there once they
// have been other than zero.
const (
	registerName     = "name"
	registerAddress  = "address"
	registerZone     = "zone"
	registerLeaving  = "leaving"
	registerDrained  = "drained"
	registerReplaces = "replaces"
	registerDoubt    = "doubt"
	registerSettled  = "settled" // time, and one byte: keep
)

const maxMemberText = 255 // of a DNS name

// changeMember adds, changes or removes a member. Who changes it as it was a while ago
// undoes no step that it has taken meanwhile: nobody joins again, and what an HSM says of
// itself is no word on its removal, which is an admin's.
func (s *session) changeMember(c hsm.Change) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleAdmin && s.who.Role != hsm.RoleHSM {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin, hsm.RoleHSM)
	}
	m := c.Member
	if err := checkMember(m); err != nil {
		return hsm.MaskedObject{}, err
	}
	ref := hsm.MemberRef(m.ID)
	return s.h.update(hsm.ScopeCluster, ref, func(cur *held) (*hsm.Record, error) {
		next := *m
		if cur != nil {
			if err := s.mayBecome(cur.rec, &next); err != nil {
				return nil, err
			}
		}
		return s.h.withRegisters(cur, hsm.KindMember, ref, m.ID.String(), memberValues(cur, &next), s.h.stampOf(c))
	})
}

// mayBecome: nobody comes back after its removal, and only an HSM itself says
// that it has joined, since it alone knows that it has every key. It sets right in m
// what is no word of this caller's.
func (s *session) mayBecome(cur *hsm.Record, m *hsm.Member) error {
	was, err := readMember(cur)
	switch {
	case err != nil:
		return err
	case was.Removed && !m.Removed:
		return fmt.Errorf("%w: %s was removed from the cluster, for good; invite it as a new HSM", hsm.ErrDenied, m.ID)
	case s.who.Role == hsm.RoleHSM && s.who.Name == m.ID.String():
	case was.Joining && !m.Joining && was.Leaving == m.Leaving && was.Removed == m.Removed:
		return fmt.Errorf("%w: %s is joining; it says itself when it has every key", hsm.ErrDenied, m.ID)
	default:
		m.Joining = was.Joining
	}
	m.Joining = m.Joining && was.Joining
	if s.who.Role == hsm.RoleHSM && !m.Removed {
		m.Leaving = was.Leaving
	}
	return nil
}

// memberValues are the registers to write; those that were never other than
// zero are left out.
func memberValues(cur *held, m *hsm.Member) map[string][]byte {
	values := map[string][]byte{
		registerName: []byte(m.Name), registerAddress: []byte(m.Address), registerZone: []byte(m.Zone),
		hsm.RegisterRemoved: hsm.BoolValue(m.Removed),
	}
	add := func(name string, value []byte, zero bool) {
		if _, set := registerOf(cur, name); set || !zero {
			values[name] = value
		}
	}
	add(hsm.RegisterJoining, hsm.BoolValue(m.Joining), !m.Joining)
	add(registerLeaving, hsm.BoolValue(m.Leaving), !m.Leaving)
	add(registerDrained, hsm.BoolValue(m.Drained), !m.Drained)
	add(registerReplaces, counterValue(uint64(m.Replaces)), m.Replaces == 0)
	// Whoever changes a member as it was a while ago takes no doubt back.
	was, _ := registerOf(cur, registerDoubt)
	doubt := max(m.Doubt, int64(counter(was)))
	add(registerDoubt, counterValue(uint64(doubt)), doubt == 0)
	add(registerSettled, append(counterValue(uint64(m.Settled)), hsm.BoolValue(m.Keep)...), m.Settled == 0)
	return values
}

func registerOf(cur *held, name string) (hsm.Register, bool) {
	if cur == nil {
		return hsm.Register{}, false
	}
	r, ok := cur.rec.Registers[name]
	return r, ok
}

func checkMember(m *hsm.Member) error {
	if m == nil || m.ID == 0 || len(m.Name) > maxMemberText || len(m.Zone) > maxMemberText {
		return fmt.Errorf("%w: member: want an id, and name and zone of at most %d characters", hsm.ErrInvalid, maxMemberText)
	}
	if !printable(m.Name) || !printable(m.Zone) || !printable(m.Address) {
		return fmt.Errorf("%w: member %s: name, zone and address: want printable characters", hsm.ErrInvalid, m.ID)
	}
	if _, _, err := net.SplitHostPort(m.Address); err != nil || len(m.Address) > maxMemberText+6 {
		return fmt.Errorf("%w: member %s: address %q: want host:port", hsm.ErrInvalid, m.ID, m.Address)
	}
	return nil
}

// members lists the members, by name.
func (h *HSM) members() ([]hsm.Member, error) {
	list := []hsm.Member{}
	err := h.each(hsm.KindMember, func(r *hsm.Record) error {
		m, err := readMember(r)
		list = append(list, m)
		return err
	})
	slices.SortFunc(list, func(a, b hsm.Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list, err
}

// each reads the cluster's live objects of one kind.
func (h *HSM) each(kind hsm.Kind, f func(*hsm.Record) error) error {
	var refs []hsm.KeyRef
	err := scan(h.store.db, []byte{prefixDigest, byte(kind.Scope())}, func(key, value []byte) (bool, error) {
		ref, err := refOf(key)
		if err != nil {
			return false, err
		}
		o, err := decodeDigest(ref, value)
		if err == nil && o.Kind == kind && !o.Tombstone {
			refs = append(refs, ref)
		}
		return true, err
	})
	if err != nil {
		return h.store.wrap("list", err)
	}
	for _, ref := range refs {
		cur, err := h.read(kind.Scope(), ref)
		if err != nil {
			return err
		}
		if cur == nil {
			continue
		}
		if err := f(cur.rec); err != nil {
			return h.damaged(ref, err)
		}
	}
	return nil
}

func readMember(r *hsm.Record) (hsm.Member, error) {
	id, err := hsm.ParseHSMID(r.Core.Owner)
	text := func(name string) string { return string(r.Registers[name].Value) }
	flag := func(name string) bool { return r.Registers[name].Bool() }
	m := hsm.Member{
		ID: id, Name: text(registerName), Address: text(registerAddress), Zone: text(registerZone),
		Removed: flag(hsm.RegisterRemoved), Joining: flag(hsm.RegisterJoining), Leaving: flag(registerLeaving), Drained: flag(registerDrained),
		Replaces: hsm.HSMID(counter(r.Registers[registerReplaces])), Doubt: int64(counter(r.Registers[registerDoubt])),
	}
	if m.Removed {
		m.RemovedAt = r.Registers[hsm.RegisterRemoved].Stamp.Wall().UnixMilli()
	}
	if v := r.Registers[registerSettled].Value; len(v) == 9 {
		m.Settled, m.Keep = int64(binary.BigEndian.Uint64(v)), v[8] == 1
	}
	return m, err
}
