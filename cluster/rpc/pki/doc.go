// Package pki makes and checks the TLS identities of a cluster.
//
// A lineage has one certificate authority: a clone keeps it and gets another
// cluster id. An identity (which cluster, what kind, what name) is a URI in the
// certificate, so that it does not depend on addresses, and both sides of every
// connection check it: signed by this authority, of this cluster, of a kind
// that may stand on that side, and not expired. TLS is 1.3 and mutual; there
// is no other way in.
package pki
