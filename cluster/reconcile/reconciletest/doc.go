// Package reconciletest offers sources for the tests of whatever reconciles:
// Replica, a real replica in memory with masked objects that merge, and Set, a
// mere set of references and digests that is quick to make a million of.
package reconciletest
