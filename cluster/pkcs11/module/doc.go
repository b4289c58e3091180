// Package module holds libhsmbackup-pkcs11.so, the thin PKCS #11 module in plain C that
// an application loads to use a cluster through the local daemon (src), the generator
// of what follows from tables (gen), and the tests of both. It has no Go code of its
// own: no Go runs inside the application. README.md tells how to build and use it,
// PROTOCOL.md what it says to the daemon.
package module

//go:generate go run ./gen src
