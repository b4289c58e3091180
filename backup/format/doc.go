// Package format reads and writes the bytes of a repository: packs, indexes,
// envelopes and manifests, as FORMAT.md of package backup specifies them. It
// does no I/O of its own and trusts nothing that it reads: every decoder
// bounds what it allocates (limits.go), accepts exactly one encoding of each
// value, and answers ErrCorrupt or ErrVersion otherwise.
package format
