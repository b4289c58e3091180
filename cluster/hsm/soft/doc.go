// Package soft is the software HSM: it implements the contract of package hsm
// on an object store of its own, and package mech's mechanisms.
//
// # Durability
//
// Every write is one atomic, synced batch of the object store (pebble);
// concurrent writers share a sync. A method that returns without error has its
// effects on disk. After a crash at any point, opening the HSM again is all
// that recovery takes.
//
// If the log cannot be written (a failing disk; a disk that fills up in spite
// of the reserve), what was being written may or may not be on disk. The HSM
// then refuses everything with hsm.ErrUnavailable until it is opened again,
// because what it would show might not survive. A failure in the background
// that pebble cannot go on from ends the process with a panic that names the
// folder: an HSM that is down is repaired from its peers, one that lies is not.
//
// # Consistency
//
// Each object has a lock around read, merge and write. The sketch of a scope is
// updated together with the store, so that root, cells and listing of one call
// are of one moment.
//
// # Rights
//
// The table of cloudhsm.md §1.4, with these decisions. An HSM principal may
// make an admin where there is none, the first settings, change members, and unlock
// users: whoever holds an HSM's certificate holds its keys at rest anyhow. That
// unlock is the way out when every admin has been locked. An appliance may have
// the recovery envelope sealed to the custodians of the cluster's policy, and
// to nobody else. Admins see all keys' attributes and use none.
//
// # Session keys
//
// They live in the memory of one session, and are gone when it closes. They are
// in no file, list of objects, sketch or snapshot.
package soft
