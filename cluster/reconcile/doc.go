// Package reconcile brings one replica up to another at a cost that depends on
// their difference, not on their size.
//
// Every object of a replica is an item of 24 bytes: its reference and its
// digest. Two replicas are equal if their roots are: a root is a 32-byte sum
// over the items, kept up to date per write. If the roots differ, both sides
// stream coded symbols of their items, and the symbols' difference decodes to
// the items that only one side has, after about 1.4 symbols per such item,
// however many items both share (Yang, Gilad, Alizadeh: Practical Rateless Set
// Reconciliation, SIGCOMM 2024). Where a side keeps no sketch, or a sketch
// would cost more than the lists it replaces, both sides are listed in order of
// reference and merged.
//
//	Diff    what differs, in one round trip
//	Apply   bring what differs from one side to the other
//	Sync    both
//	Copy    both, streaming, for a destination that is empty or nearly so
//
// A source keeps a State up to date with each write, and serves its cells with
// CellsFrom. FORMAT.md fixes roots and cells to the bit. The package does no
// network I/O.
package reconcile
