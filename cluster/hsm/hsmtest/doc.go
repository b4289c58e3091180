// Package hsmtest holds the conformance suite that every implementation of the
// contract of package hsm passes, and Faulty, which makes calls of a session
// fail in both ways that remote writes fail.
//
// The suite knows hsm.Module and hsm.Session only. An implementation hands it a
// way to open an HSM with given keys, identity and clock, and to see that HSM
// as any principal.
package hsmtest
