// Package figures measures the figures of the README on real parts: HSMs as
// processes of the real binary, and the limit each figure is held against in
// the same run. It has benchmarks only:
//
//	go test -run '^$' -bench . ./integration/figures
//
// Those of backup and restore, up to a million keys and a MinIO beside the HSMs, with a table of
// the figures, their limits and bars at the end:
//
//	HSMBACKUP_FIGURES_KEYS=10000,100000,1000000 HSMBACKUP_FIGURES_STORE=minio go test -run '^$' -bench Backup -benchtime 3x -timeout 1h ./integration/figures
//
// PKCS #11 through the daemon, beside SoftHSM: make bench-pkcs11.
//
// Those of package backup alone, without HSMs, wire and store:
//
//	HSMBACKUP_BENCH_KEYS=1000000 go test -run '^$' -bench 'Take|Limit|Verify|Extract|Memory' -timeout 1h ./backup
package figures
