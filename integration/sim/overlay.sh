#!/bin/sh
# overlay.sh GO FOLDER: writes FOLDER/overlay.json, for go test -overlay. With it Go's
# runtime, as the user's toolchain has it, decides nothing by chance or by the time that
# passes outside, as long as there is one processor (GOMAXPROCS is 1): which goroutine runs
# next follows from the program, on a machine however busy. What Go draws lots for then
# follows from the virtual time, which differs from seed to seed.
set -eu
root=$("$1" env GOROOT)/src/runtime
mkdir -p "$2"
folder=$(cd "$2" && pwd)
files=

# after FILE LINE CODE: CODE follows LINE, which FILE has once. The copy's name keeps it out
# of what ./... and gofmt . find.
after() {
	from=$root/$1 to=$folder/$1.txt
	case " $files " in *" $1 "*) mv "$to" "$to.before" && from=$to.before ;; *) files="$files $1" ;; esac
	awk -v line="$2" -v code="$3" '
		{ print }
		{ sub(/^\t+/, "") }
		$0 == line { print code; n++ }
		END { exit n != 1 }
	' "$from" > "$to" || {
		echo "overlay.sh: $root/$1 lacks the line \"$2\": look for what has its place in this version of Go, and mend this script" >&2
		exit 1
	}
	rm -f "$to.before"
}

# Sysmon takes the processor from who has run for 10 ms, or is in a system call for two
# of its looks.
after proc.go 'func retake(now int64) uint32 {' 'if gomaxprocs == 1 { return 0 }'
# A mutex for which somebody has waited for 1 ms goes to who comes first, and not to who
# runs. Only the difference of two times counts, and that the first is not 0.
after sema.go 'func internal_sync_nanotime() int64 {' 'if gomaxprocs == 1 { return 1 }'
# Lots: which case of a select, where a walk over a map begins, which timer of an instant
# is first, and where a map has its keys (in every process the same, too).
after select.go 'j := cheaprandn(uint32(norder + 1))' 'if b := getg().bubble; b != nil && gomaxprocs == 1 { j = uint32(uint64(b.now) % uint64(norder+1)) }'
after rand.go 'func maps_rand() uint64 {' 'if b := getg().bubble; b != nil && gomaxprocs == 1 { return uint64(b.now) }'
after time.go 't.rand = cheaprand()' 'if gomaxprocs == 1 { t.rand = 0 }'
after alg.go 'hashkey[i] = uintptr(bootstrapRand())' 'hashkey[i] = uintptr(2*i + 1)'
after alg.go 'key[i] = bootstrapRand()' 'key[i] = uint64(i)'

{
	printf '{"Replace": {'
	comma=
	for f in $files; do
		printf '%s\n\t"%s": "%s"' "$comma" "$root/$f" "$folder/$f.txt"
		comma=,
	done
	printf '\n}}\n'
} > "$folder/overlay.json"
