package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Kind is what the holder of a certificate is.
type Kind string

// The kinds. An HSM serves and calls; the others only call. A joiner has no
// certificate of the authority's, but one signed with the key of its token.
const (
	KindHSM       Kind = "hsm"
	KindAppliance Kind = "appliance"
	KindClient    Kind = "client"
	KindJoiner    Kind = "joiner"
)

// MaxName is the longest name in an identity, in bytes.
const MaxName = 64

// Identity is who holds a certificate. It travels as the certificate's only
// URI, hsmbackup://<cluster id>/<kind>/<name>.
type Identity struct {
	Cluster hsm.ClusterID
	Kind    Kind
	Name    string // HSM id of an HSM; otherwise the name the certificate was issued to
}

// HSMIdentity is the identity of an HSM.
func HSMIdentity(c hsm.ClusterID, id hsm.HSMID) Identity {
	return Identity{Cluster: c, Kind: KindHSM, Name: id.String()}
}

// String prints the identity as its URI.
func (i Identity) String() string {
	return "hsmbackup://" + i.Cluster.String() + "/" + string(i.Kind) + "/" + i.Name
}

// HSM returns the id of an HSM's identity, and whether it is one.
func (i Identity) HSM() (hsm.HSMID, bool) {
	id, err := hsm.ParseHSMID(i.Name)
	return id, err == nil && i.Kind == KindHSM
}

// Check tells whether the identity can stand in a certificate. ErrInvalid.
func (i Identity) Check() error {
	switch i.Kind {
	case KindHSM:
		if _, err := hsm.ParseHSMID(i.Name); err != nil {
			return fmt.Errorf("identity of an HSM: %w", err)
		}
	case KindAppliance, KindClient, KindJoiner:
		if err := checkName(i.Name); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: identity of kind %q: want %s, %s or %s", hsm.ErrInvalid, i.Kind, KindHSM, KindAppliance, KindClient)
	}
	if i.Cluster == 0 {
		return fmt.Errorf("%w: identity %s/%s names no cluster", hsm.ErrInvalid, i.Kind, i.Name)
	}
	return nil
}

// checkName allows letters, digits, '.', '_', '-', and neither "." nor "..".
func checkName(name string) error {
	ok := name != "" && len(name) <= MaxName && name != "." && name != ".."
	for _, c := range name {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		ok = ok && (letter || c >= '0' && c <= '9' || strings.ContainsRune("._-", c))
	}
	if !ok {
		return fmt.Errorf("%w: name %q of a certificate: want 1 to %d letters, digits, '.', '_' or '-'", hsm.ErrInvalid, name, MaxName)
	}
	return nil
}

// ParseIdentity reads what Identity.String prints, and nothing else. ErrInvalid.
func ParseIdentity(s string) (Identity, error) {
	body, ok := strings.CutPrefix(s, "hsmbackup://")
	parts := strings.Split(body, "/")
	if !ok || len(parts) != 3 {
		return Identity{}, fmt.Errorf("%w: identity %q: want hsmbackup://<cluster id>/<kind>/<name>", hsm.ErrInvalid, s)
	}
	cluster, err := hsm.ParseClusterID(parts[0])
	if err != nil {
		return Identity{}, err
	}
	id := Identity{Cluster: cluster, Kind: Kind(parts[1]), Name: parts[2]}
	return id, id.Check()
}

// IdentityOf reads the identity in a certificate: exactly one URI and no other
// alternative name. What it returns is a claim until the certificate has been
// verified. ErrInvalid.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	others := len(cert.DNSNames) + len(cert.EmailAddresses) + len(cert.IPAddresses)
	if len(cert.URIs) != 1 || others != 0 {
		return Identity{}, fmt.Errorf("%w: certificate %q carries no identity: want exactly one URI hsmbackup://…", hsm.ErrInvalid, cert.Subject.CommonName)
	}
	return ParseIdentity(cert.URIs[0].String())
}

func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: "hsmbackup", Host: i.Cluster.String(), Path: "/" + string(i.Kind) + "/" + i.Name}
}
