// Package backup writes, lists, opens and verifies snapshots in a repository: a
// prefix in a storage.Store whose objects are written once (FORMAT.md).
//
// A snapshot is one more replica that reconcile brings up to the HSMs of a
// cluster: Take finds what the HSMs hold and the parent snapshot does not, and
// writes that. A *Snapshot is an hsm.Source; it tells its objects, root and
// sketch without any key, and yields masked objects to whoever has an identity
// that decrypts its packs. Those objects are still sealed under the masking
// key, which only the recovery envelope holds, for the custodians.
//
// The host that takes snapshots needs an appliance credential, the public
// recipients, and the right to create objects and to list and read them. It can
// decrypt nothing.
package backup
