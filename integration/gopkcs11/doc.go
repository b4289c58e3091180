// Package gopkcs11 has tests that use a PKCS #11 module as Go applications do, through
// crypto11 and through miekg/pkcs11. It is a module of its own: both use cgo, which has
// no place among the dependencies of hsmbackup. The integration tests run it against a
// daemon, with PKCS11_MODULE, PKCS11_TOKEN and PKCS11_PIN set.
package gopkcs11
