package soft

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

var settingsRef = hsm.PolicyRef(hsm.PolicySettings)

// defaultMinCopies holds while a cluster has no settings: that of CloudHSM's
// Client SDK 5.
const defaultMinCopies = 2

// maxMinCopies is the number of HSMs a cluster can have (cloudhsm.md §1.1).
const maxMinCopies = 28

// The registers of the settings.
const (
	registerMinCopies  = "min-copies"
	registerMinZones   = "min-zones" // not written before it is first asked for
	registerCheckOnUse = "check-on-use"
	registerCustodians = "custodians" // one per line
	registerThreshold  = "threshold"
)

func readSettings(r *hsm.Record) hsm.Settings {
	number := func(name string) int {
		n, _ := strconv.Atoi(string(r.Registers[name].Value)) // 0 if it is not set
		return n
	}
	s := hsm.Settings{
		MinCopies: number(registerMinCopies), MinZones: number(registerMinZones), CheckOnUse: r.Registers[registerCheckOnUse].Bool(),
		Threshold: number(registerThreshold),
	}
	if c := string(r.Registers[registerCustodians].Value); c != "" {
		s.Custodians = strings.Split(c, "\n")
	}
	return s
}

func checkSettings(s *hsm.Settings) error {
	switch {
	case s == nil:
		return fmt.Errorf("%w: no settings given", hsm.ErrInvalid)
	case s.MinCopies < 1 || s.MinCopies > maxMinCopies:
		return fmt.Errorf("%w: min-copies is %d: want 1 to %d", hsm.ErrInvalid, s.MinCopies, maxMinCopies)
	case s.MinZones < 0 || s.MinZones > s.MinCopies:
		return fmt.Errorf("%w: min-zones is %d with min-copies %d: want 0 to %d", hsm.ErrInvalid, s.MinZones, s.MinCopies, s.MinCopies)
	case s.Threshold < 0 || s.Threshold > len(s.Custodians):
		return fmt.Errorf("%w: threshold is %d with %d custodians", hsm.ErrInvalid, s.Threshold, len(s.Custodians))
	}
	for _, c := range s.Custodians {
		if c == "" || strings.ContainsFunc(c, func(r rune) bool { return r <= ' ' || !unicode.IsPrint(r) }) {
			return fmt.Errorf("%w: custodian %q: want an age recipient", hsm.ErrInvalid, c)
		}
	}
	return nil
}

// changeSettings writes those settings that differ, so that changes of
// different ones on different HSMs all hold.
func (s *session) changeSettings(c hsm.Change) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleAdmin && s.who.Role != hsm.RoleHSM {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin)
	}
	if err := checkSettings(c.Settings); err != nil {
		return hsm.MaskedObject{}, err
	}
	values := map[string][]byte{
		registerMinCopies:  []byte(strconv.Itoa(c.Settings.MinCopies)),
		registerCheckOnUse: hsm.BoolValue(c.Settings.CheckOnUse),
		registerCustodians: []byte(strings.Join(c.Settings.Custodians, "\n")),
		registerThreshold:  []byte(strconv.Itoa(c.Settings.Threshold)),
	}
	return s.h.update(hsm.ScopeLineage, settingsRef, func(cur *held) (*hsm.Record, error) {
		if cur != nil && s.who.Role == hsm.RoleHSM {
			return nil, s.denied(hsm.RoleAdmin) // it makes the first ones only
		}
		if c.Settings.MinZones > 0 || cur != nil && cur.rec.Registers[registerMinZones].Value != nil {
			values[registerMinZones] = []byte(strconv.Itoa(c.Settings.MinZones))
		}
		return s.h.withRegisters(cur, hsm.KindPolicy, settingsRef, hsm.PolicySettings, values, s.h.stampOf(c))
	})
}

// withRegisters returns a copy of cur, or a new record, in which the registers
// have these values, stamped at; nil if they have them already, or if what is there was
// changed at the same time and wins. ErrLate if what differs is later than the change.
func (h *HSM) withRegisters(cur *held, kind hsm.Kind, ref hsm.KeyRef, name string, values map[string][]byte, at hsm.Stamp) (*hsm.Record, error) {
	r, err := h.newRecord(kind, ref, name)
	if err != nil {
		return nil, err
	}
	if cur != nil {
		r = cur.rec.Clone()
	}
	changed := cur == nil
	for name, v := range values {
		was, set := r.Registers[name]
		if set && bytes.Equal(was.Value, v) {
			continue
		}
		later, err := wins(at, was.Stamp)
		if err != nil {
			return nil, err
		}
		if later {
			r.Set(name, v, at)
			changed = true
		}
	}
	if !changed {
		return nil, nil
	}
	return r, nil
}
