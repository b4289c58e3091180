package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// CertificateLife is how long an HSM's, appliance's or client's certificate is
// valid.
const CertificateLife = 2 * 365 * 24 * time.Hour

// Spec describes a cluster to be laid out on this machine.
type Spec struct {
	Name, Region string
	Dir          string // must be missing or empty
	HSMs         int
	Listen       []string // per HSM, or one for all; port 0 picks a free one
	Zones        []string // per HSM, or one for all; default "zone-1", …
	MinCopies    int
	MinZones     int // 0: any
	CheckOnUse   bool
	Custodians   []string
	Threshold    int
	Seal         func(folder string) (seal.Seal, error) // nil: a file seal in each folder
	Version      string
	SealEnvelope SealEnvelope
	Iterations   int // PBKDF2 of the first admin's password; 0: the default

	// A new cluster has a first admin.
	Admin    string
	Password hsm.Secret

	// A clone has the keyring and CA of its source instead, and Fill loads its
	// objects into the first HSM. Source says in the audit log what they are.
	Keyring *hsm.Keyring
	CA      hsm.Secret
	Fill    func(ctx context.Context, into hsm.Session) error
	Source  string
}

// maxHSMs bounds a cluster (cloudhsm.md §1.1).
const maxHSMs = 28

// validate finds what is wrong before anything is made.
func (s *Spec) validate() error {
	switch {
	case s.Name == "" || strings.ContainsAny(s.Name, "/\\ \t\n"):
		return fmt.Errorf("%w: cluster name %q: want a word without slashes or spaces", hsm.ErrInvalid, s.Name)
	case s.Dir == "":
		return fmt.Errorf("%w: no folder for the cluster", hsm.ErrInvalid)
	case s.HSMs < 1 || s.HSMs > maxHSMs:
		return fmt.Errorf("%w: %d HSMs: a cluster has 1 to %d", hsm.ErrInvalid, s.HSMs, maxHSMs)
	case s.MinCopies < 1 || s.MinCopies > s.HSMs:
		return fmt.Errorf("%w: min-copies is %d with %d HSMs: want 1 to %d", hsm.ErrInvalid, s.MinCopies, s.HSMs, s.HSMs)
	case s.MinZones < 0 || s.MinZones > min(s.MinCopies, s.zones()):
		return fmt.Errorf("%w: min-zones is %d with min-copies %d and %d zones: want 0 to %d", hsm.ErrInvalid, s.MinZones, s.MinCopies, s.zones(), min(s.MinCopies, s.zones()))
	case s.Threshold < 0 || s.Threshold > len(s.Custodians):
		return fmt.Errorf("%w: threshold is %d with %d custodians", hsm.ErrInvalid, s.Threshold, len(s.Custodians))
	case len(s.Listen) > 1 && len(s.Listen) != s.HSMs, len(s.Zones) > 1 && len(s.Zones) != s.HSMs:
		return fmt.Errorf("%w: give one address and one zone, or one for each of the %d HSMs", hsm.ErrInvalid, s.HSMs)
	case (s.Keyring == nil) != (s.Fill == nil):
		return fmt.Errorf("%w: a clone takes both keyring and objects of its source, a new cluster neither", hsm.ErrInvalid)
	}
	if err := s.validateAddresses(); err != nil || s.Keyring != nil {
		return err
	}
	if _, err := hsm.CanonicalUserName(s.Admin); err != nil {
		return fmt.Errorf("first admin: %w", err)
	}
	return hsm.CheckPassword(s.Password)
}

// validateAddresses refuses addresses that nobody reaches, and fixed ones that
// two HSMs would share.
func (s *Spec) validateAddresses() error {
	taken := map[string]bool{}
	for i := range s.HSMs {
		address := s.address(i)
		if err := checkAddress(address); err != nil {
			return err
		}
		if _, port, _ := net.SplitHostPort(address); port == "0" {
			continue
		}
		if taken[address] {
			return fmt.Errorf("%w: address %q for two HSMs: give each its own, or port 0", hsm.ErrInvalid, address)
		}
		taken[address] = true
	}
	return nil
}

func (s *Spec) address(i int) string { return pick(s.Listen, i, "127.0.0.1:0") }

// members returns the members of the new cluster, with new ids.
func (s *Spec) members() ([]hsm.Member, error) {
	members := make([]hsm.Member, s.HSMs)
	for i := range members {
		members[i] = hsm.Member{ID: hsm.NewHSMID(), Name: fmt.Sprintf("hsm-%d", i+1), Address: s.address(i), Zone: pick(s.Zones, i, fmt.Sprintf("zone-%d", i+1))}
	}
	return members, freePorts(members)
}

func pick(list []string, i int, fallback string) string {
	switch len(list) {
	case 0:
		return fallback
	case 1:
		return list[0]
	}
	return list[i]
}

// freePorts replaces port 0 by a port that is free now. All listeners are held
// until every port is known, so that no two HSMs get the same.
func freePorts(members []hsm.Member) error {
	for i, m := range members {
		host, port, err := net.SplitHostPort(m.Address)
		if err != nil {
			return fmt.Errorf("%w: address %q: want host:port", hsm.ErrInvalid, m.Address)
		}
		if port != "0" {
			continue
		}
		l, err := listenFree(host)
		if err != nil {
			return fmt.Errorf("%w: address %q: %w", hsm.ErrInvalid, m.Address, err)
		}
		defer l.Close()
		_, port, _ = net.SplitHostPort(l.Addr().String())
		members[i].Address = net.JoinHostPort(host, port)
	}
	return nil
}

// Ports below those that operating systems give to outgoing connections: an HSM
// that is down keeps its port in the sense that nothing takes it by accident.
const (
	lowPort  = 20000
	highPort = 32000
)

// givenPorts are those that this process has given out: an HSM that is down, or not up yet,
// does not listen on its own.
var givenPorts sync.Map

// listenFree listens on a free port of host.
func listenFree(host string) (net.Listener, error) {
	for range 64 {
		port := strconv.Itoa(lowPort + rand.N(highPort-lowPort))
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort(host, port)); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", net.JoinHostPort(host, "0"))
}

// zones counts the zones that the HSMs will stand in.
func (s *Spec) zones() int {
	if len(s.Zones) == 0 {
		return s.HSMs
	}
	different := map[string]bool{}
	for _, z := range s.Zones {
		different[z] = true
	}
	return len(different)
}
