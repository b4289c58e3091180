// Package hsm is the contract of one HSM: what it stores, what it may hand
// out, and what a caller may ask of it.
//
// Everything that must not be lost is a masked object. Anything that holds
// masked objects is a Source, and a Replica if it also takes them. An HSM, a
// cluster, a snapshot and a clone are such things, so that server-side sync,
// backup, restore and synckey are one operation, package reconcile's, with
// four callers. A Replica can neither use nor reveal a key.
//
// The package does no I/O: it defines records, merges them, masks and unmasks
// them (FORMAT.md), and knows the tables of attributes and users. Package soft
// implements the contract in software, package rpc over the network.
package hsm
