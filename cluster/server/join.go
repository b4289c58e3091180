package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// JoinSpec describes an HSM that joins a cluster elsewhere.
type JoinSpec struct {
	Token   hsm.Secret // what hsm invite printed
	Dir     string     // must be missing or empty
	Address string     // where others reach it; port 0 picks a free one
	Listen  string     // where it listens, if that is not Address
	Name    string     // empty: the cluster gives one
	Zone    string     // empty: the cluster gives one
	// Seal makes the seal of the new folder; nil: a file seal.
	Seal    func(folder string) (seal.Seal, error)
	Version string
	Log     *slog.Logger     // nil: slog.Default
	Now     func() time.Time // nil: time.Now

	Network *Network  // nil: TLS and gRPC
	FS      soft.FS   // of the object store, which is in the folder store there; nil: Dir's
	Audit   OpenAudit // nil: the audit log is in Dir
	// Step is told of each durable step before it is made. Nil: nobody is.
	Step func(what string)
}

var (
	// ErrToken: none of the HSMs that a join token names lets this one in.
	ErrToken = errors.New("join token")
	// ErrTokenRefused: the cluster refuses the token for good: it has expired or
	// was used. It comes with hsm.ErrDenied.
	ErrTokenRefused = errors.New("join token refused")
)

// Join makes the folder of a new HSM of an existing cluster: it makes its own TLS
// key, proves to one of the token's HSMs that it holds the token, and gets a
// certificate, and the keys of the lineage sealed to a key of its own. Then it
// copies every object. The HSM counts as a member once it has run (Open, Serve).
//
// Like Create it works in a hidden folder beside DIR, .NAME.hsmbackup-join, and
// renames that as the last step. If we die on the way, the same call goes on with
// the same keys, so that the token still serves; what it leaves otherwise is at
// most a member that is JOINING and counts nowhere.
//
// ErrFolder if DIR is not empty or in use; hsm.ErrInvalid if the token is no
// token; ErrTokenRefused if it has expired or was used; ErrToken and
// hsm.ErrUnavailable if none of its HSMs lets this one in; pki.ErrForeign if who
// answers there is not of the token's cluster.
func Join(ctx context.Context, s JoinSpec) (*Config, error) {
	token, err := pki.ParseToken(s.Token)
	if err != nil {
		return nil, err
	}
	defer token.Seed.Wipe()
	s.complete()
	dir, err := filepath.Abs(s.Dir)
	if err != nil || s.Dir == "" {
		return nil, fmt.Errorf("%w %s: no folder for the HSM", ErrFolder, s.Dir)
	}
	j := &joiner{spec: s, token: token, staging: filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".hsmbackup-join")}
	unlock, err := j.stage(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := j.run(ctx); err != nil {
		if errors.Is(err, hsm.ErrDenied) || errors.Is(err, hsm.ErrInvalid) { // another try has the same end
			return nil, errors.Join(err, os.RemoveAll(j.staging))
		}
		return nil, err
	}
	// If we die before the rename the same call does all but the first step anew;
	// after it DIR holds a whole HSM.
	j.step("rename the folder")
	if err := renameFolder(j.staging, dir); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, dir, err)
	}
	if err := hsm.SyncFolder(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, dir, err)
	}
	return j.config, nil
}

func (s *JoinSpec) complete() {
	if s.Log == nil {
		s.Log = slog.Default()
	}
	if s.Now == nil {
		s.Now = time.Now
	}
}

// joiner is one Join.
type joiner struct {
	spec    JoinSpec
	token   *pki.Token
	staging string
	seal    seal.Seal
	pending *pending
	config  *Config
}

// pending is what a joiner keeps from its first step on, under its seal: asked
// again, it must be the same one.
type pending struct {
	Version   uint64    `cbor:"1,keyasint"`
	Invite    []byte    `cbor:"2,keyasint"`
	Joiner    hsm.HSMID `cbor:"3,keyasint"`
	Request   []byte    `cbor:"4,keyasint"` // PKCS #10, PEM
	TLSKey    []byte    `cbor:"5,keyasint"` // PEM
	Transport []byte    `cbor:"6,keyasint"` // age identity
	Address   string    `cbor:"7,keyasint"`
}

const (
	pendingFile    = "join.age"
	pendingVersion = 1
)

// step comes before each durable step.
func (j *joiner) step(what string) {
	if j.spec.Step != nil {
		j.spec.Step(what)
	}
}

// stage makes sure that dir is missing or empty, and opens the staging folder.
func (j *joiner) stage(dir string) (unlock func(), err error) {
	if err := mustBeEmpty(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, dir, err)
	}
	lock, err := lockPath(j.staging+".lock", dir)
	if err != nil {
		return nil, err
	}
	unlock = func() { os.Remove(j.staging + ".lock"); lock.Close() }
	if err := j.begin(); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// begin takes up what an earlier run with the same token left, or starts anew.
func (j *joiner) begin() error {
	sealed, err := hsm.ReadSmallFile(filepath.Join(j.staging, pendingFile))
	if err == nil {
		if j.seal, err = j.openSeal(); err != nil {
			return err
		}
		if err = j.resume(sealed); err != nil {
			return fmt.Errorf("an unfinished join in %s cannot be taken up: %w; give the seal it was begun with, or delete that folder", j.staging, err)
		}
		if j.pending != nil {
			return j.clean(pendingFile, seal.FileName)
		}
	}
	if err := errors.Join(j.dropStore(), os.RemoveAll(j.staging), os.Mkdir(j.staging, 0o700)); err != nil {
		return fmt.Errorf("%w %s: %w", ErrFolder, j.staging, err)
	}
	if j.seal, err = j.openSeal(); err != nil {
		return err
	}
	return j.draw()
}

func (j *joiner) openSeal() (seal.Seal, error) {
	newSeal := j.spec.Seal
	if newSeal == nil {
		newSeal = seal.NewFile
	}
	sl, err := newSeal(j.staging)
	if errors.Is(err, fs.ErrExist) {
		return seal.OpenFile(j.staging)
	}
	return sl, err
}

// resume reads the pending join; of another token it is nil.
func (j *joiner) resume(sealed []byte) error {
	plain, err := j.seal.Open(sealed)
	if err != nil {
		return err
	}
	defer plain.Wipe()
	p, err := parsePending(plain)
	if err != nil {
		return err
	}
	if slices.Equal(p.Invite, j.token.Invite[:]) {
		j.pending = p
	}
	return nil
}

// parsePending decodes an unfinished join. ErrFolder.
func parsePending(plain hsm.Secret) (*pending, error) {
	var p pending
	if err := cbor.Unmarshal(plain.Reveal(), &p); err != nil || p.Version != pendingVersion {
		return nil, fmt.Errorf("%w: it does not decode", ErrFolder)
	}
	return &p, nil
}

// clean deletes what a later step of an earlier run left.
func (j *joiner) clean(keep ...string) error {
	entries, err := os.ReadDir(j.staging)
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrFolder, j.staging, err)
	}
	for _, e := range entries {
		if !slices.Contains(keep, e.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(j.staging, e.Name())))
		}
	}
	return errors.Join(err, j.dropStore())
}

// dropStore deletes a store on a file system of its own.
func (j *joiner) dropStore() error {
	if j.spec.FS == nil {
		return nil // it goes with the folder
	}
	return j.spec.FS.RemoveAll(storeDir)
}

// draw draws the joiner's keys and keeps them, before anybody is asked: if we die
// before that, nobody knows of this joiner; after it, it can ask again.
func (j *joiner) draw() error {
	request, key, err := pki.NewRequest()
	if err != nil {
		return err
	}
	transport, err := seal.NewTransport()
	if err != nil {
		return err
	}
	address, err := j.address()
	if err != nil {
		return err
	}
	j.pending = &pending{
		Version: pendingVersion, Invite: j.token.Invite[:], Joiner: hsm.NewHSMID(), Request: request, TLSKey: key.Reveal(),
		Transport: transport.Text().Reveal(), Address: address,
	}
	plain, err := cbor.Marshal(j.pending)
	if err != nil {
		return fmt.Errorf("keep the joiner's keys: they do not encode")
	}
	defer clear(plain)
	sealed, err := j.seal.Close(hsm.NewSecret(plain))
	if err != nil {
		return err
	}
	j.step("keep the joiner's keys")
	if err := writeFile(filepath.Join(j.staging, pendingFile), sealed, 0o600); err != nil {
		return fmt.Errorf("%w %s: %w", ErrFolder, j.staging, err)
	}
	return errors.Join(hsm.SyncFolder(j.staging), hsm.SyncFolder(filepath.Dir(j.staging)))
}

// address checks the address and picks a port if there is none.
func (j *joiner) address() (string, error) {
	m := []hsm.Member{{Address: j.spec.Address}}
	if err := checkAddress(j.spec.Address); err != nil {
		return "", err
	}
	err := freePorts(m)
	return m[0].Address, err
}

// run goes through all steps, again from the first if the masking key was rotated
// on the way: what the HSM was let in with does not open what is new then.
func (j *joiner) run(ctx context.Context) error {
	for again := 0; ; again++ {
		err := j.once(ctx)
		rotated := errors.Is(err, hsm.ErrMaskingKey) || again > 0 && errors.Is(err, ErrToken)
		if !rotated || again == maxRotations {
			return err
		}
		j.spec.Log.Warn("the masking key is being rotated; the join begins again", "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(rotationPause):
		}
		if err := j.clean(pendingFile, seal.FileName); err != nil {
			return err
		}
	}
}

// A join begins again for a rotation this often, after a pause in which the other
// HSMs exchange the new key.
const (
	maxRotations  = 10
	rotationPause = time.Second
)

func (j *joiner) once(ctx context.Context) error {
	reply, err := j.ask(ctx)
	if err != nil {
		return err
	}
	keys, err := j.accept(reply)
	if err != nil {
		return err
	}
	defer keys.wipe()
	j.step("write what the cluster gave")
	if err := j.write(reply, keys); err != nil {
		return fmt.Errorf("%w %s: %w", ErrFolder, j.staging, err)
	}
	j.step("fill the object store")
	if err := j.fill(ctx, reply, keys); err != nil {
		return err
	}
	j.step("forget the joiner's keys")
	if err := os.Remove(filepath.Join(j.staging, pendingFile)); err != nil {
		return fmt.Errorf("%w %s: %w", ErrFolder, j.staging, err)
	}
	return errors.Join(hsm.SyncFolder(j.staging), j.syncStore())
}

// syncStore makes the name of a store on a file system of its own durable.
func (j *joiner) syncStore() error {
	if j.spec.FS == nil {
		return nil // it is in the folder
	}
	root, err := j.spec.FS.OpenDir("/")
	if err != nil {
		return err
	}
	return errors.Join(root.Sync(), root.Close())
}

// DefaultJoinAddress is the address of an HSM that was given none: a free port of
// the address that this machine has towards the cluster's HSMs.
func DefaultJoinAddress(token hsm.Secret) (string, error) {
	t, err := pki.ParseToken(token)
	if err != nil {
		return "", err
	}
	defer t.Seed.Wipe()
	var errs []error
	for _, address := range t.Addresses {
		conn, err := net.Dial("udp", address) // sends nothing; it asks for the route
		if err != nil {
			errs = append(errs, err)
			continue
		}
		host, _, err := net.SplitHostPort(conn.LocalAddr().String())
		conn.Close()
		if err == nil {
			return net.JoinHostPort(host, "0"), nil
		}
	}
	return "", fmt.Errorf("%w: no route to the cluster; give this HSM an address of its own: %w", hsm.ErrUnavailable, errors.Join(errs...))
}
