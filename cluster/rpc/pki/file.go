package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Credential is the content of an identity file: a certificate, its key and
// the authority that signed it.
type Credential struct {
	Identity Identity // claimed by Cert; ClientConfig and ServerConfig verify it
	Cert, CA []byte   // PEM
	Key      hsm.Secret
}

// ClientConfig is the package's ClientConfig for this credential's cluster.
func (c *Credential) ClientConfig(ids ...hsm.HSMID) (*tls.Config, error) {
	return ClientConfig(c.Cert, c.Key, c.CA, c.Identity.Cluster, ids...)
}

// ServerConfig is the package's ServerConfig for this credential's cluster.
func (c *Credential) ServerConfig() (*tls.Config, error) {
	return ServerConfig(c.Cert, c.Key, c.CA, c.Identity.Cluster)
}

// maxIdentityFile is more than any identity file: a few certificates and a key.
const maxIdentityFile = 64 << 10

// WriteIdentityFile writes a certificate, its key and the CA's certificate into
// one file of mode 0600. The file appears whole and durable, or not at all, and
// never replaces another: fs.ErrExist.
func WriteIdentityFile(path string, certPEM []byte, keyPEM hsm.Secret, caPEM []byte) error {
	content := bytes.Join([][]byte{certPEM, keyPEM.Reveal(), caPEM}, nil)
	defer clear(content)
	if _, err := parseCredential(content); err != nil {
		return fmt.Errorf("identity file %s: %w", path, err)
	}
	if err := writeNew(path, content); err != nil {
		return fmt.Errorf("identity file %s: %w", path, err)
	}
	return nil
}

// SaveIdentityFile is WriteIdentityFile, and with replace takes the place of
// another, whole: a reader sees the one or the other.
func SaveIdentityFile(path string, certPEM []byte, keyPEM hsm.Secret, caPEM []byte, replace bool) error {
	if !replace {
		return WriteIdentityFile(path, certPEM, keyPEM, caPEM)
	}
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("identity file %s: %w", path, err)
	}
	if err := WriteIdentityFile(next, certPEM, keyPEM, caPEM); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(next, path), hsm.SyncFolder(filepath.Dir(path))); err != nil {
		return fmt.Errorf("identity file %s: %w", path, err)
	}
	return nil
}

func writeNew(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // fails if path exists
		return err
	}
	return hsm.SyncFolder(filepath.Dir(path))
}

// LoadIdentityFile reads an identity file. hsm.ErrDenied if others may read it,
// since its key must then be taken for known; hsm.ErrInvalid if it is not an
// identity file, hsm.ErrFile if it is no ordinary file at all.
func LoadIdentityFile(path string) (*Credential, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe is refused, not waited for
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("identity file: %w: %s is no ordinary file", hsm.ErrFile, path)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 { // there modes say nothing: access lists decide
		return nil, fmt.Errorf("%w: identity file %s holds a private key and others may read it (mode %s); run chmod 600 %s", hsm.ErrDenied, path, fs.FileMode(info.Mode().Perm()), path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxIdentityFile))
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	defer clear(content)
	c, err := parseCredential(content)
	if err != nil {
		return nil, fmt.Errorf("identity file %s: %w", path, err)
	}
	return c, nil
}

// parseCredential reads one leaf certificate, its key, and CA certificates.
func parseCredential(content []byte) (*Credential, error) {
	b, err := readBlocks(content)
	if err != nil || b.key == nil {
		return nil, fmt.Errorf("%w: want a certificate, a private key and a CA certificate in PEM", hsm.ErrInvalid)
	}
	c := &Credential{Key: encodeKey(b.key)}
	var leaf *x509.Certificate
	for _, cert := range b.certs {
		if cert.IsCA {
			c.CA = append(c.CA, encodeCert(cert.Raw)...)
			continue
		}
		if leaf != nil {
			return nil, fmt.Errorf("%w: it holds two certificates beside the CA's", hsm.ErrInvalid)
		}
		leaf, c.Cert = cert, encodeCert(cert.Raw)
	}
	if leaf == nil || c.CA == nil || !b.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("%w: want a certificate with its own private key, and a CA certificate", hsm.ErrInvalid)
	}
	c.Identity, err = IdentityOf(leaf)
	return c, err
}
