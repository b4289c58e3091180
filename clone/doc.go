// Package clone makes a cluster from a snapshot, and drills it: the whole job of
// losing a region, on real parts, with a report at the end.
package clone
