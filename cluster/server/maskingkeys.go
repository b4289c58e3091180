package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Rotation of the masking key (FORMAT.md of cluster/hsm has what it means for
// objects). An HSM makes a new key, which does not seal yet; every HSM brings
// the keys it holds to each peer that lacks them, over mutual TLS; and each seals
// under the newest once it knows that every member holds it. So whatever is sealed
// under a key, every HSM can open, and an envelope sealed by any HSM opens it.
// Keys are only ever added.

// maskingKeys is what an HSM knows of its own masking keys and of its peers'.
type maskingKeys struct {
	mu      sync.Mutex // around a change of the keyring
	peersMu sync.Mutex
	peers   map[hsm.HSMID]hsm.Info // as each last answered
}

// keyring returns the keyring of this moment.
func (s *Server) keyring() *hsm.Keyring {
	s.keys.mu.Lock()
	defer s.keys.mu.Unlock()
	return s.secrets.keyring
}

// changeKeyring replaces the keyring by what f makes of it, on disk first. If we
// die before the rename the keyring is as it was, and nothing was sealed under a
// new key; after it the new one is there. f returns its argument to change nothing.
func (s *Server) changeKeyring(f func(*hsm.Keyring) (*hsm.Keyring, error)) (*hsm.Keyring, error) {
	s.keys.mu.Lock()
	defer s.keys.mu.Unlock()
	now := s.secrets.keyring
	k, err := f(now)
	if err != nil || k == now {
		return now, err
	}
	sealed, err := closeSecrets(s.seal, k, s.secrets.ca, s.secrets.tlsKey)
	if err != nil {
		return now, err
	}
	path := filepath.Join(s.folder, sealedFile)
	if err := replaceFile(path, sealed, 0o600); err != nil {
		return now, fmt.Errorf("%w %s: %w", ErrFolder, s.folder, err)
	}
	if err := s.device.soft.SetKeyring(k); err != nil {
		return now, err
	}
	s.secrets.keyring = k
	return k, nil
}

// newest returns the epoch of the newest masking key, whether it seals or not.
func newest(k *hsm.Keyring) uint64 { return slices.Max(k.Epochs()) }

// rotate makes a new masking key, for an admin. Every member must be there: a key
// that one lacks would not seal.
func (s *Server) rotate(ctx context.Context, who hsm.Principal) error {
	if who.Role != hsm.RoleAdmin {
		return fmt.Errorf("%w: only an admin rotates the masking key", hsm.ErrDenied)
	}
	if err := s.everyMember(); err != nil {
		return err
	}
	k, err := s.changeKeyring(func(k *hsm.Keyring) (*hsm.Keyring, error) {
		if n := newest(k); n != k.Epoch() {
			return nil, fmt.Errorf("%w: a rotation is under way: epoch %d is not on every HSM yet", hsm.ErrExist, n)
		}
		return k.Rotated(s.options.Now())
	})
	if err != nil {
		return err
	}
	s.options.Log.Info("a masking key was made; it seals once every HSM holds it", "epoch", newest(k))
	for id, peer := range s.sync.connected() { // the next round would do it as well
		if err := s.bringKeys(ctx, peer, k); err != nil {
			s.options.Log.Warn("masking keys not brought to peer yet", "hsm", id.String(), "error", err)
		}
	}
	return nil
}

// everyMember tells which member is away, or joining. hsm.ErrUnavailable.
func (s *Server) everyMember() error {
	connected := s.sync.connected()
	for id, m := range s.place.now.Load().members {
		if _, ok := connected[id]; !m.Removed && id != s.config.ID && (!ok || m.Joining) {
			return fmt.Errorf("%w: %s %s is away or joining; a rotation takes every HSM: start it, or remove it from the cluster", hsm.ErrUnavailable, m.Name, id)
		}
	}
	return nil
}

// adopt takes masking keys that this HSM lacks, from another HSM of the cluster or
// from an admin who has them from custodians.
func (s *Server) adopt(who hsm.Principal, recovery hsm.Secret) error {
	if who.Role != hsm.RoleAdmin && who.Role != hsm.RoleHSM {
		return fmt.Errorf("%w: masking keys come from an admin or an HSM", hsm.ErrDenied)
	}
	theirs, ca, err := hsm.DecodeRecovery(recovery)
	if err != nil {
		return err
	}
	ca.Wipe()
	if err := theirs.CheckEpochs(s.options.Now()); err != nil {
		return err
	}
	had := len(s.keyring().Epochs())
	k, err := s.changeKeyring(func(k *hsm.Keyring) (*hsm.Keyring, error) { return k.Join(theirs) })
	if n := len(k.Epochs()) - had; n > 0 {
		s.options.Log.Info("masking keys taken", "from", who.Name, "keys", n, "newest", newest(k))
	}
	return err
}

// changeMaskingKeys carries out the changes that concern the keyring.
func (s servedSession) changeMaskingKeys(ctx context.Context, c hsm.Change) (err error) {
	who := s.Principal()
	defer func() { s.server.device.record(string(c.Kind), who, 0, "", err) }()
	if err := errors.Join(s.server.serves(), s.server.recordable()); err != nil && !s.isHSM() {
		return err
	}
	if c.Kind == hsm.ChangeRotate {
		return s.server.rotate(ctx, who)
	}
	return s.server.adopt(who, c.Recovery)
}

// exchangeKeys brings a peer the masking keys that it lacks, and takes note of
// those that it holds. Software that has none to rotate says nothing of its own.
func (s *Server) exchangeKeys(ctx context.Context, peer hsm.Session, theirs hsm.Info) error {
	s.keys.peersMu.Lock()
	s.keys.peers[theirs.ID] = theirs
	s.keys.peersMu.Unlock()
	k := s.keyring()
	lacks := func(epoch uint64) bool { return !slices.Contains(theirs.Epochs, epoch) }
	if len(theirs.Epochs) == 0 || !slices.ContainsFunc(k.Epochs(), lacks) {
		return nil
	}
	return s.bringKeys(ctx, peer, k)
}

func (s *Server) bringKeys(ctx context.Context, peer hsm.Session, k *hsm.Keyring) error {
	recovery := hsm.EncodeRecovery(k, hsm.Secret{})
	defer recovery.Wipe()
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	_, err := peer.Change(ctx, hsm.Change{Kind: hsm.ChangeMaskingKeys, Recovery: recovery})
	return err
}

// sealWithNewest lets the newest masking key seal once every member is known to
// hold it.
func (s *Server) sealWithNewest() {
	k := s.keyring()
	epoch := newest(k)
	if epoch == k.Epoch() || !s.everywhere(epoch) {
		return
	}
	_, err := s.changeKeyring(func(k *hsm.Keyring) (*hsm.Keyring, error) { return k.Sealing(epoch) })
	s.device.record("seal-with-masking-key", s.device.principal(), 0, fmt.Sprintf("epoch %d", epoch), err)
	if err != nil {
		s.options.Log.Error("the new masking key cannot be put to use", "epoch", epoch, "error", err)
		return
	}
	s.options.Log.Info("objects are sealed under the new masking key from now on", "epoch", epoch)
}

// everywhere tells whether every member has shown that it holds a masking key.
func (s *Server) everywhere(epoch uint64) bool {
	s.keys.peersMu.Lock()
	peers := maps.Clone(s.keys.peers)
	s.keys.peersMu.Unlock()
	for id, m := range s.place.now.Load().members {
		if !m.Removed && id != s.config.ID && !slices.Contains(peers[id].Epochs, epoch) {
			return false
		}
	}
	return true
}

// afterRound does what a round of sync may have made possible.
func (s *Server) afterRound(ctx context.Context) {
	s.settleIn(ctx)
	s.sealWithNewest()
}
