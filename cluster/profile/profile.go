package profile

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// FileName is the name of a profile in its cluster's folder.
const FileName = "cluster.yaml"

// ErrInvalid: the file does not say what a profile or configuration must say. It
// matches hsm.ErrInvalid.
var ErrInvalid = fmt.Errorf("profile is %w", hsm.ErrInvalid)

// Profile says how to reach one cluster. It is the whole of cluster.yaml, a
// file that anyone may read and copy to another machine.
type Profile struct {
	// Name is what people call the cluster. Clones may share it.
	Name string `yaml:"name"`
	// ID names the cluster for ever, as "cluster-" and 13 characters. An HSM
	// that belongs to another cluster is refused. A clone has its own.
	ID hsm.ClusterID `yaml:"id"`
	// Lineage is shared by the cluster and its clones, as "lineage-" and 32
	// hexadecimal digits.
	Lineage hsm.Lineage `yaml:"lineage"`
	// Region is where the cluster is.
	Region string `yaml:"region"`
	// CA is the certificate, PEM, of the cluster's own authority. No other
	// authority is trusted.
	CA string `yaml:"ca"`
	// MinCopies is the number of HSMs that must hold a new key for its creation
	// to succeed, for clients that use this profile. 0: what the cluster's own
	// settings say, for check_on_use too.
	MinCopies int `yaml:"min_copies,omitempty"`
	// MinZones is the number of zones that those copies must stand in. It is read
	// only with min_copies, and is at most that.
	MinZones int `yaml:"min_zones,omitempty"`
	// CheckOnUse refuses to use a key that is on fewer than min_copies HSMs. It
	// is read only with min_copies.
	CheckOnUse bool `yaml:"check_on_use,omitempty"`
	// Client is the path of the client identity (certificate and private key,
	// PEM) with which users connect before they log in; relative to the
	// profile's folder.
	Client string `yaml:"client,omitempty"`
	// Appliance is the path of the appliance identity, with which backup and
	// synckey run unattended; relative to the profile's folder.
	Appliance string `yaml:"appliance,omitempty"`
	// HSMs are the cluster's HSMs. Not all need be listed: a client learns the
	// others from any one that answers.
	HSMs []HSM `yaml:"hsms"`

	path string
}

// HSM is one HSM of the profile.
type HSM struct {
	// ID names the HSM for ever, as "hsm-" and 13 characters. 0: not known yet,
	// whoever answers at the address.
	ID hsm.HSMID `yaml:"id,omitempty"`
	// Name is the HSM's name in its certificate.
	Name string `yaml:"name,omitempty"`
	// Address is host:port.
	Address string `yaml:"address"`
	// Zone is the availability zone.
	Zone string `yaml:"zone,omitempty"`
	// Dir is the HSM's folder, if it runs on this machine; relative to the
	// profile's folder.
	Dir string `yaml:"dir,omitempty"`
}

// Load reads the profile at path, a file or the folder that holds cluster.yaml.
// ErrInvalid if it says too little, or anything unknown; fs.ErrNotExist if there
// is none.
func Load(path string) (*Profile, error) {
	file := path
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		file = filepath.Join(path, FileName)
	}
	b, err := hsm.ReadSmallFile(file)
	if err != nil {
		return nil, fmt.Errorf("read cluster profile: %w", err)
	}
	p, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	p.path = file
	return p, nil
}

// parse decodes a profile and validates it. ErrInvalid.
func parse(b []byte) (*Profile, error) {
	p := &Profile{}
	if err := decode(b, p); err != nil {
		return nil, err
	}
	return p, p.Validate()
}

func decode(b []byte, into any) error {
	if err := yaml.UnmarshalWithOptions(b, into, yaml.Strict()); err != nil {
		line, _, _ := strings.Cut(err.Error(), "\n") // the rest quotes the file
		return fmt.Errorf("%w: %s", ErrInvalid, line)
	}
	return nil
}

// Validate tells what is missing or wrong.
func (p *Profile) Validate() error {
	switch {
	case p.ID == 0:
		return fmt.Errorf("%w: id is missing", ErrInvalid)
	case p.Lineage == hsm.Lineage{}:
		return fmt.Errorf("%w: lineage is missing", ErrInvalid)
	case p.MinCopies < 0:
		return fmt.Errorf("%w: min_copies is %d; want at least 1, or 0 for the default", ErrInvalid, p.MinCopies)
	case p.MinZones < 0 || p.MinZones > p.MinCopies:
		return fmt.Errorf("%w: min_zones is %d with min_copies %d; want 0 to %d", ErrInvalid, p.MinZones, p.MinCopies, p.MinCopies)
	case len(p.HSMs) == 0:
		return fmt.Errorf("%w: hsms is empty; name at least one address", ErrInvalid)
	}
	if err := checkCA(p.CA); err != nil {
		return err
	}
	return checkHSMs(p.HSMs)
}

func checkCA(text string) error {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return fmt.Errorf("%w: ca holds no PEM certificate", ErrInvalid)
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return fmt.Errorf("%w: ca: %w", ErrInvalid, err)
	}
	return nil
}

func checkHSMs(hsms []HSM) error {
	ids, addresses := map[hsm.HSMID]bool{}, map[string]bool{}
	for i, h := range hsms {
		if _, _, err := net.SplitHostPort(h.Address); err != nil {
			return fmt.Errorf("%w: hsms[%d]: address %q: want host:port", ErrInvalid, i, h.Address)
		}
		if addresses[h.Address] || h.ID != 0 && ids[h.ID] {
			return fmt.Errorf("%w: hsms[%d]: %s %s is listed twice", ErrInvalid, i, h.ID, h.Address)
		}
		ids[h.ID], addresses[h.Address] = true, true
	}
	return nil
}

// Save writes the profile to path, mode 0644, and remembers path as its place.
// It is atomic and durable: a reader sees the old or the new file whole, after a
// crash too.
func (p *Profile) Save(path string) error {
	if err := p.Validate(); err != nil {
		return err
	}
	b, err := yaml.MarshalWithOptions(p, yaml.UseLiteralStyleIfMultiline(true))
	if err != nil {
		return fmt.Errorf("encode cluster profile: %w", err)
	}
	if err := WriteFile(path, b, nil); err != nil {
		return fmt.Errorf("write cluster profile: %w", err)
	}
	p.path = path
	return nil
}

// Path returns where the profile was loaded from or saved to, or "".
func (p *Profile) Path() string { return p.path }

// Folder returns the folder that relative paths start from.
func (p *Profile) Folder() string { return filepath.Dir(p.path) }

// Resolve makes a path of the profile one that can be opened. The empty path
// stays empty.
func (p *Profile) Resolve(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(p.Folder(), path)
}

// ClientPath returns the path of the client identity, or "" if there is none.
func (p *Profile) ClientPath() string { return p.Resolve(p.Client) }

// AppliancePath returns the path of the appliance identity, or "".
func (p *Profile) AppliancePath() string { return p.Resolve(p.Appliance) }

// WriteFile writes path whole: a temporary file, synced, renamed, and the folder
// synced. If we die before the rename, the old file stands (and the temporary one
// is left); after it, the new one. The new file has the mode and, where the
// process may give it, the owner of like; without like the mode is 0644.
func WriteFile(path string, b []byte, like fs.FileInfo) (err error) {
	folder := filepath.Dir(path)
	f, err := os.CreateTemp(folder, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := fill(f, b, like); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return hsm.SyncFolder(folder)
}

func fill(f *os.File, b []byte, like fs.FileInfo) error {
	mode := fs.FileMode(0o644)
	if like != nil {
		mode = like.Mode().Perm()
		chown(f, like)
	}
	_, err := f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync())
	return errors.Join(err, f.Close())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
