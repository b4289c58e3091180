// Package pkcs11 is the PKCS #11 front door of a cluster: what applications see
// through p11-kit-client.so or libhsmbackup-pkcs11.so, served by a daemon on their
// host (hsmbackup client).
//
// A slot is a cluster. A connection is one application, with sessions, a login for
// each slot, handles and session objects of its own; they end with it. Token objects are
// those of the cluster: made by client-side sync under its durability policy, and used on
// whichever HSM holds them. An application that logs in as USER:PASSWORD shares the
// daemon's connections with others of the same user and password, and sees
// nothing of their session objects.
//
// Every operation on a key is one call to an HSM, or several that do not depend on
// one another: an HSM may die between the parts of a multi-part operation.
// What needs no key, digests for instance, is done here.
package pkcs11
