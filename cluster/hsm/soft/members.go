package soft

import (
	"cmp"
	"fmt"
	"net"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The registers of a member.
const (
	registerName    = "name"
	registerAddress = "address"
	registerZone    = "zone"
	registerRemoved = "removed"
)

const maxMemberText = 255 // of a DNS name

// changeMember adds, changes or removes a member.
func (s *session) changeMember(c hsm.Change) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleAdmin && s.who.Role != hsm.RoleHSM {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin, hsm.RoleHSM)
	}
	m := c.Member
	if err := checkMember(m); err != nil {
		return hsm.MaskedObject{}, err
	}
	ref, values := hsm.MemberRef(m.ID), map[string][]byte{
		registerName: []byte(m.Name), registerAddress: []byte(m.Address), registerZone: []byte(m.Zone),
		registerRemoved: hsm.BoolValue(m.Removed),
	}
	return s.h.update(hsm.ScopeCluster, ref, func(cur *held) (*hsm.Record, error) {
		return s.h.withRegisters(cur, hsm.KindMember, ref, m.ID.String(), values)
	})
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
	var refs []hsm.KeyRef
	err := scan(h.store.db, []byte{prefixDigest, byte(hsm.ScopeCluster)}, func(key, value []byte) (bool, error) {
		ref, err := refOf(key)
		if err != nil {
			return false, err
		}
		o, err := decodeDigest(ref, value)
		if err == nil && o.Kind == hsm.KindMember {
			refs = append(refs, ref)
		}
		return true, err
	})
	if err != nil {
		return nil, h.store.wrap("list", err)
	}
	list := []hsm.Member{}
	for _, ref := range refs {
		cur, err := h.read(hsm.ScopeCluster, ref)
		if err != nil {
			return nil, err
		}
		if cur == nil {
			continue
		}
		m, err := readMember(cur.rec)
		if err != nil {
			return nil, h.damaged(ref, err)
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b hsm.Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

func readMember(r *hsm.Record) (hsm.Member, error) {
	id, err := hsm.ParseHSMID(r.Core.Owner)
	text := func(name string) string { return string(r.Registers[name].Value) }
	return hsm.Member{
		ID: id, Name: text(registerName), Address: text(registerAddress), Zone: text(registerZone), Removed: r.Registers[registerRemoved].Bool(),
	}, err
}
