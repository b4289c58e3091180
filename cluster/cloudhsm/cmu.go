package cloudhsm

import "errors"

// CMUFileName is the name of the file of CloudHSM's management utility, which talks
// to the servers listed in it and to no others.
const CMUFileName = "cloudhsm_mgmt_util.cfg"

// cmuPort is the port of a server that the utility is given without one.
const cmuPort = 2225

// CMUPath is where the management utility looks for its file on an operating system.
func CMUPath(goos string) string {
	if goos == "windows" {
		return join(goos, Folder(goos), "data", CMUFileName)
	}
	return join(goos, Folder(goos), CMUFileName)
}

// LoadCMU reads the management utility's file; an empty one if there is none.
func LoadCMU(path string) (*File, error) { return load(path, (*File).checkCMU) }

func (f *File) checkCMU() error {
	if f.doc.kind != '{' {
		return badFile("it holds %s; want an object", f.doc.kindName())
	}
	servers := field{of: f.doc}.get("servers")
	if servers.of == nil {
		return nil
	}
	if err := servers.array(); err != nil {
		return err
	}
	for i := range servers.of.items {
		one := servers.item(i)
		if err := errors.Join(one.object(), one.strings("name", "hostname")); err != nil {
			return err
		}
	}
	return nil
}

// ApplyCMU makes the addresses, host or host:port, the servers of the management
// utility. A server that is listed already stays as it is; a new one is as the first
// that was listed, certificates included. It is idempotent. ErrFile.
func (f *File) ApplyCMU(addresses []string) error {
	if len(addresses) == 0 || len(addresses) > MaxHSMs {
		return badFile("%d servers: want 1 to %d", len(addresses), MaxHSMs)
	}
	was, out := f.doc.get("servers"), &value{kind: '['}
	for _, a := range addresses {
		host, port, err := hostPortOr(a, cmuPort)
		if err != nil {
			return err
		}
		s := serverAt(was, host, port)
		if s == nil {
			s = newCMUServer(was, host, port)
		}
		out.items = append(out.items, s)
	}
	f.doc.set("servers", out)
	return nil
}

func newCMUServer(like *value, host string, port int) *value {
	s := &value{kind: '{'}
	s.set("name", newText(host))
	s.set("hostname", newText(host))
	s.set("port", newInt(port))
	s.set("enable", newText("yes"))
	if like == nil || len(like.items) == 0 {
		return s
	}
	for _, m := range like.items[0].members {
		if s.get(m.key) == nil {
			s.set(m.key, m.val)
		}
	}
	return s
}

// ApplySSL sets the client's own key and certificate in Client SDK 3's file; what is
// empty stays.
func (f *File) ApplySSL(key, certificate string) {
	for _, t := range [][2]string{{"pkey", key}, {"certificate", certificate}} {
		if t[1] != "" {
			setText(f.doc.child("ssl"), t[0], t[1])
		}
	}
}
