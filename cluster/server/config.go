package server

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/goccy/go-yaml"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
)

// Names inside an HSM's folder.
const (
	configFile = "hsm.yaml"
	certFile   = "hsm.crt"    // the HSM's certificate, PEM
	caFile     = "ca.crt"     // the cluster's CA, PEM
	sealedFile = "sealed.age" // keyring, CA key and TLS key, under the seal
	storeDir   = "store"      // the object store
	AuditFile  = "audit.log"  // the audit log
	lockFile   = "lock"       // held while a process serves the folder
)

// ErrFolder: a folder is not what it should be: no HSM's, not empty, in use.
var ErrFolder = errors.New("folder")

// Config is hsm.yaml, the configuration of one HSM. Unknown keys are refused.
type Config struct {
	// ID names the HSM for ever: "hsm-" and 13 characters.
	ID hsm.HSMID `yaml:"id"`
	// Name is for people: "hsm-1".
	Name string `yaml:"name"`
	// Cluster and ClusterName name the cluster.
	Cluster     hsm.ClusterID `yaml:"cluster"`
	ClusterName string        `yaml:"cluster_name"`
	// Lineage is the fingerprint of the keys under the seal; they must match.
	Lineage hsm.Lineage `yaml:"lineage"`
	// Region and Zone tell where the HSM stands.
	Region string `yaml:"region"`
	Zone   string `yaml:"zone"`
	// Address is where other members and clients reach the HSM, host:port. It may
	// change while the HSM is down: it tells the others when it is back. With port
	// 0 it is a free one at each start.
	Address string `yaml:"address"`
	// Listen is where the HSM listens, if that is not Address: "0.0.0.0:7000"
	// behind a name, or a container's own address.
	Listen string `yaml:"listen,omitempty"`
	// Metrics is where /metrics, /healthz and /readyz are shown, HOST:PORT; without
	// a host on this machine only. Nowhere if it is empty.
	Metrics string `yaml:"metrics,omitempty"`
	// Seal protects the keys at rest: "file" (development: the identity lies in
	// the folder), "identity" (an age identity file elsewhere: HSMBACKUP_SEAL_IDENTITY)
	// or "passphrase" (HSMBACKUP_SEAL_PASSPHRASE, or a prompt).
	Seal string `yaml:"seal"`
}

// LoadConfig reads the configuration of the HSM in folder. ErrFolder if it
// holds none, or one that does not decode.
func LoadConfig(folder string) (*Config, error) {
	path := filepath.Join(folder, configFile)
	b, err := hsm.ReadSmallFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w %s holds no HSM: no %s", ErrFolder, folder, configFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, folder, err)
	}
	return parseConfig(b, path)
}

// parseConfig decodes hsm.yaml, which lies at path. ErrFolder.
func parseConfig(b []byte, path string) (*Config, error) {
	var c Config
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&c); err != nil {
		return nil, fmt.Errorf("%w: %s does not decode: %s", ErrFolder, path, firstLine(err))
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFolder, path, err)
	}
	return &c, nil
}

func (c *Config) check() error {
	switch {
	case c.ID == 0 || c.Cluster == 0 || c.Lineage == hsm.Lineage{}:
		return fmt.Errorf("id, cluster and lineage must be set")
	case c.Seal == "":
		return fmt.Errorf("seal must be set: file, identity or passphrase")
	}
	if err := checkAddress(c.Address); err != nil {
		return err
	}
	if c.Metrics != "" {
		if err := metrics.CheckAddress(c.Metrics); err != nil {
			return err
		}
	}
	if c.Listen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen %q: want host:port", c.Listen)
	}
	return nil
}

// listen returns where to listen.
func (c *Config) listen() string { return cmp.Or(c.Listen, c.Address) }

// checkAddress checks an address that others are to reach. ErrInvalid.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("%w: address %q: want host:port", hsm.ErrInvalid, address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%w: address %q: want a port from 0 to 65535", hsm.ErrInvalid, address)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("%w: address %q: nobody reaches an HSM there; name the host, and set listen in %s where it differs", hsm.ErrInvalid, address, configFile)
	}
	return nil
}

func (c *Config) save(folder string) error {
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write %s: %w", configFile, err)
	}
	return writeFile(filepath.Join(folder, configFile), b, 0o644)
}

// newFile makes a file to write. Tests put disks in its place that are full.
var newFile = func(path string, mode os.FileMode) (writeSyncCloser, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

type writeSyncCloser interface {
	io.WriteCloser
	Sync() error
}

// writeFile writes a file and syncs it. It is for folders that nobody uses yet.
func writeFile(path string, b []byte, mode os.FileMode) error {
	f, err := newFile(path, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// replaceFile puts a whole file in the place of another. It stops at the first
// error: until the rename, which comes after all bytes are durable, the file before
// is there. hsm.ErrFull when the disk is full; what was written of the new file is
// deleted then, since it takes space.
func replaceFile(path string, b []byte, mode os.FileMode) error {
	if err := os.RemoveAll(path + ".new"); err != nil {
		return err
	}
	if err := writeFile(path+".new", b, mode); err != nil {
		_ = os.Remove(path + ".new") // the next call would
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%w: free some space: %w", hsm.ErrFull, err)
		}
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return hsm.SyncFolder(filepath.Dir(path))
}

func firstLine(err error) string {
	line, _, _ := bytes.Cut([]byte(err.Error()), []byte("\n"))
	return string(line)
}
