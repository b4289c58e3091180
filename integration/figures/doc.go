// Package figures measures the figures of the README on real parts: HSMs as
// processes of the real binary, and the limit each figure is held against in
// the same run. It has benchmarks only:
//
//	go test -run '^$' -bench . ./integration/figures
package figures
