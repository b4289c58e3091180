package cloudhsm

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Component is a part of Client SDK 5 with a configuration file of its own.
type Component string

// The components. Dyn is the OpenSSL dynamic engine, which is there on Linux only;
// KSP is Windows' key storage provider.
const (
	PKCS11          Component = "pkcs11"
	Dyn             Component = "dyn"
	JCE             Component = "jce"
	CLI             Component = "cli"
	KSP             Component = "ksp"
	OpenSSLProvider Component = "openssl-provider"
)

var components = map[string][]Component{
	"linux":   {PKCS11, Dyn, JCE, CLI, OpenSSLProvider},
	"windows": {PKCS11, JCE, CLI, KSP},
}

// Components lists all of them.
func Components() []Component { return []Component{PKCS11, Dyn, JCE, CLI, KSP, OpenSSLProvider} }

// ComponentsOn lists those of an operating system, named as Go names it; what is
// not Windows is as Linux.
func ComponentsOn(goos string) []Component {
	if goos == "windows" {
		return slices.Clone(components["windows"])
	}
	return slices.Clone(components["linux"])
}

// ParseComponent reads a component's name. ErrFile if there is none of it.
func ParseComponent(s string) (Component, error) {
	if c := Component(s); slices.Contains(Components(), c) {
		return c, nil
	}
	names := make([]string, len(Components()))
	for i, c := range Components() {
		names[i] = string(c)
	}
	return "", fmt.Errorf("%w: there is no component %q: want %s", ErrFile, s, strings.Join(names, ", "))
}

// FileName is the name of the component's file.
func (c Component) FileName() string { return "cloudhsm-" + string(c) + ".cfg" }

// Path is where the component looks for its file on an operating system.
func (c Component) Path(goos string) string { return join(goos, Folder(goos), c.FileName()) }

// Folder is where Client SDK 5 keeps its files on an operating system.
func Folder(goos string) string {
	if goos == "windows" {
		return `C:\ProgramData\Amazon\CloudHSM`
	}
	return "/opt/cloudhsm/etc"
}

// SDK3FileName is the name of Client SDK 3's file.
const SDK3FileName = "cloudhsm_client.cfg"

// SDK3Path is where Client SDK 3 looks for its file on an operating system.
func SDK3Path(goos string) string {
	if goos == "windows" {
		return join(goos, Folder(goos), "data", SDK3FileName)
	}
	return join(goos, Folder(goos), SDK3FileName)
}

// join joins parts of a path of another operating system.
func join(goos string, parts ...string) string {
	if goos == "windows" {
		return strings.Join(parts, `\`)
	}
	return strings.Join(parts, "/")
}

// Here is the operating system of this process.
const Here = runtime.GOOS

// Called tells for which component a program is called that stands under name:
// configure-pkcs11, configure-dyn.exe, with or without a folder before it.
func Called(name string) (Component, bool) {
	s, ok := strings.CutPrefix(programName(name), "configure-")
	if !ok {
		return "", false
	}
	c, err := ParseComponent(s)
	return c, err == nil
}

// CalledSDK3 tells whether a program is called as Client SDK 3's configure.
func CalledSDK3(name string) bool { return programName(name) == "configure" }

// programName is the last element of a path, without .exe.
func programName(name string) string {
	if i := strings.LastIndexAny(name, `/\`); i >= 0 {
		name = name[i+1:]
	}
	if n := len(name) - len(".exe"); n > 0 && strings.EqualFold(name[n:], ".exe") {
		name = name[:n]
	}
	return name
}
