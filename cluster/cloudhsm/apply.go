package cloudhsm

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Names of options. Public samples show disable_key_availability_check alone; the
// others are named after their switches.
const (
	optionDisableValidate = "disable_validate_key_at_init"
	optionCertificates    = "enable_certificate_storage"
	optionSDK3Compatible  = "enable_sdk3_compatibility_mode"
	optionWeakECDSA       = "enable_ecdsa_with_weak_hash_function"
	optionRetryMode       = "default_retry_mode"
)

var optionBools = []string{settingDisableCheck, optionDisableValidate, optionCertificates, optionSDK3Compatible, optionWeakECDSA}

// Settings are the changes to a file: what is nil or empty stays as it is.
type Settings struct {
	// ClusterID selects the entry of a file with several clusters, and is written.
	ClusterID string
	// Addresses are host or host:port, and replace the servers.
	Addresses []string
	// CA, ClientCert and ClientKey are paths.
	CA, ClientCert, ClientKey string

	AvailabilityCheck, ValidateAtInit, Certificates, SDK3Compatible, WeakECDSA *bool

	RetryMode                               string // off or standard
	LogType, LogFile, LogLevel, LogRotation string
}

// allowed are the values of settings that have few.
var allowed = map[string][]string{
	"default-retry-mode": {"off", "standard"},
	"log-type":           {"term", "file"},
	"log-level":          {"error", "warn", "info", "debug", "trace"},
	"log-rotation":       {"never", "hourly", "daily", "weekly"},
}

// Check tells which setting has a value that does not exist.
func (s Settings) Check() error {
	for name, v := range map[string]string{"default-retry-mode": s.RetryMode, "log-type": s.LogType, "log-level": s.LogLevel, "log-rotation": s.LogRotation} {
		if v != "" && !slices.Contains(allowed[name], v) {
			return badFile("--%s %q: want one of %q", name, v, allowed[name])
		}
	}
	for _, a := range s.Addresses {
		if _, _, err := hostPort(a); err != nil {
			return err
		}
	}
	return nil
}

func hostPort(address string) (host string, port int, err error) {
	return hostPortOr(address, defaultPort)
}

// hostPortOr splits an address that may be without a port.
func hostPortOr(address string, usual int) (host string, port int, err error) {
	host, text, splitErr := net.SplitHostPort(address)
	if splitErr != nil {
		host, text = address, strconv.Itoa(usual)
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 || !isHost(host) {
		return "", 0, badFile("address %q: want HOST or HOST:PORT", address)
	}
	return host, port, nil
}

// isHost tells whether host is an address, or may be a name: of labels of 1 to 63
// characters (RFC 1123, section 2.1), the underscore allowed. What ends in a number is an
// address or nothing.
func isHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	_, err := strconv.ParseUint(labels[len(labels)-1], 10, 64)
	return err != nil && len(host) <= 253 && !slices.ContainsFunc(labels, func(l string) bool { return l == "" || len(l) > 63 || strings.ContainsFunc(l, notOfLabel) })
}

func notOfLabel(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

// perCluster tells whether any of the changes is of a cluster.
func (s Settings) perCluster() bool {
	flags := []*bool{s.AvailabilityCheck, s.ValidateAtInit, s.Certificates, s.SDK3Compatible, s.WeakECDSA}
	return s.ClusterID+s.CA+s.ClientCert+s.ClientKey+s.RetryMode != "" || len(s.Addresses) > 0 ||
		slices.ContainsFunc(flags, func(b *bool) bool { return b != nil })
}

// Apply makes the changes. It is idempotent. ErrFile if the file has several
// clusters and the changes do not say which is meant.
func (f *File) Apply(s Settings) error {
	if err := s.Check(); err != nil {
		return err
	}
	if s.perCluster() {
		e, err := f.entry(s.ClusterID)
		if err != nil {
			return err
		}
		if e == nil {
			e = f.addEntry()
		}
		s.applyTo(e)
	}
	s.applyLogging(f.doc)
	return nil
}

// AddCluster makes the changes to the entry with their cluster id, which is added
// if there is none.
func (f *File) AddCluster(s Settings) error {
	if s.ClusterID == "" {
		return badFile("--cluster-id is missing: which cluster is it?")
	}
	if err := s.Check(); err != nil {
		return err
	}
	e := f.withID(s.ClusterID)
	if e == nil {
		e = f.addEntry()
	}
	s.applyTo(e)
	return nil
}

// RemoveCluster drops the entry with a cluster id, and tells whether there was one.
func (f *File) RemoveCluster(clusterID string) bool {
	e := f.withID(clusterID)
	if e == nil || clusterID == "" {
		return false
	}
	c := f.doc.get("clusters")
	c.items = slices.DeleteFunc(c.items, func(v *value) bool { return v == e })
	return true
}

func (f *File) withID(clusterID string) *value {
	for _, e := range f.entries() {
		if clusterIDOf(e) == clusterID {
			return e
		}
	}
	return nil
}

func (f *File) addEntry() *value {
	c := f.doc.get("clusters")
	if c == nil {
		c = &value{kind: '['}
		f.doc.set("clusters", c)
	}
	e := &value{kind: '{'}
	e.set("type", newText("hsm1"))
	e.child("cluster")
	c.items = append(c.items, e)
	return e
}

func (s Settings) applyTo(entry *value) {
	in := entry.child("cluster")
	for _, t := range [][2]string{{"hsm_ca_file", s.CA}, {"cluster_id", s.ClusterID}, {"client_cert_path", s.ClientCert}, {"client_key_path", s.ClientKey}} {
		setText(in, t[0], t[1])
	}
	if len(s.Addresses) > 0 {
		in.set("servers", serversOf(in.get("servers"), s.Addresses))
	}
	setOption(in, settingDisableCheck, not(s.AvailabilityCheck))
	setOption(in, optionDisableValidate, not(s.ValidateAtInit))
	setOption(in, optionCertificates, s.Certificates)
	setOption(in, optionSDK3Compatible, s.SDK3Compatible)
	setOption(in, optionWeakECDSA, s.WeakECDSA)
	if s.RetryMode != "" {
		in.child("options").set(optionRetryMode, newText(s.RetryMode))
	}
}

func not(b *bool) *bool {
	if b == nil {
		return nil
	}
	n := !*b
	return &n
}

func setText(in *value, key, text string) {
	if was, ok := in.get(key).text(); text != "" && (!ok || was != text) {
		in.set(key, newText(text))
	}
}

// setOption writes an option. One that is not there is off already.
func setOption(in *value, name string, on *bool) {
	if on == nil || in.get("options").get(name) == nil && !*on {
		return
	}
	in.child("options").set(name, newBool(*on))
}

// serversOf lists the addresses. A server that is there already stays as it is,
// with what else its entry says.
func serversOf(was *value, addresses []string) *value {
	out := &value{kind: '['}
	for _, a := range addresses {
		host, port, err := hostPort(a)
		if err != nil {
			continue // Check has refused it
		}
		if s := serverAt(was, host, port); s != nil {
			out.items = append(out.items, s)
			continue
		}
		s := &value{kind: '{'}
		s.set("hostname", newText(host))
		s.set("port", newInt(port))
		s.set("enable", newBool(true))
		out.items = append(out.items, s)
	}
	return out
}

func serverAt(servers *value, host string, port int) *value {
	if servers == nil {
		return nil
	}
	for _, s := range servers.items {
		h, _ := s.get("hostname").text()
		n, ok := s.get("port").integer()
		if h == host && (n == port || !ok && port == defaultPort) {
			return s
		}
	}
	return nil
}

func (s Settings) applyLogging(doc *value) {
	for _, t := range [][2]string{{"log_type", s.LogType}, {"log_file", s.LogFile}, {"log_level", s.LogLevel}, {"log_interval", s.LogRotation}} {
		if t[1] != "" {
			setText(doc.child("logging"), t[0], t[1])
		}
	}
}
