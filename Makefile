# make test is what CI runs (.ci/run). It needs Go, git and a C compiler, which
# the race detector uses; the rest comes from the Go module proxy at the versions
# pinned here, in go.mod, and in the go.mod files of integration/minio and
# integration/versitygw.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 30s
OVERLAY     := bin/sim/overlay.json

.PHONY: test check servers build drill bench bench-create bench-insync bench-converge bench-synckey bench-pkcs11 fuzz chaos sim replay overlay packages module

# The simulation runs one goroutine at a time, and is the same in each run: it needs
# no race detector, which would make it ten times slower.
test: check packages servers overlay
	CGO_ENABLED=1 $(GO) test -race -timeout 30m -p 1 $$($(GO) list ./... | grep -v '/integration/sim$$')
	$(GO) test -overlay $(OVERLAY) -timeout 30m ./integration/sim -sim.exact

check:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	GOOS=windows CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/hsmbackup

# The S3 servers of the tests, MinIO and versitygw, built once, side by side, and
# kept in the user's cache folder.
servers:
	$(GO) test -v -count 1 -timeout 40m -p 2 -run '^TestServerKeepsItsDataOverARestart$$' ./integration/miniotest ./integration/versitytest

# What the tests take from the distribution: the judges of PKCS #11, and the
# compiler and checker of the C module.
PACKAGES := gcc libc6-dev libp11-kit-dev p11-kit p11-kit-modules python3-pykcs11 softhsm2 valgrind \
	opensc gnutls-bin libnss3-tools openssl libengine-pkcs11-openssl nginx-light curl openjdk-17-jdk-headless openssh-client openssh-server

packages:
	@missing=; for p in $(PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$p 2> /dev/null | grep -q 'ok installed' || missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $$missing; fi

# The PKCS #11 module that applications load, bin/libhsmbackup-pkcs11.so.
module:
	$(MAKE) -C cluster/pkcs11/module module OUT=$(CURDIR)/bin

build:
	$(GO) build -o bin/ ./cmd/hsmbackup

drill:
	$(GO) run ./cmd/hsmbackup drill

bench:
	$(GO) test -run '^$$' -bench . -benchmem -p 1 -timeout 2h ./...

# Single figures, each with its limit beside it: keys made per second beside etcd;
# an idle cluster's bytes and CPU time, with no keys and a million; the time to
# equal roots after an HSM stood still.
bench-create bench-insync bench-converge:
	$(GO) test -run '^$$' -bench '$(FIGURE_$@)' -benchtime $(or $(BENCHTIME),$(TIME_$@)) -timeout 1h ./integration/figures

# What synckey costs, beside the floor and a tree of hashes: bytes and round trips
# per difference among a million objects, time over a link of 80 ms, CPU time of
# each side, cost per write, bytes beside the objects moved, lag of --watch.
bench-synckey:
	$(GO) test -run '^$$' -bench 'Figure|^BenchmarkUpdate$$' -benchtime $(or $(BENCHTIME),1x) -timeout 1h ./cluster/reconcile
	$(GO) test -run '^$$' -bench Figure -benchtime $(or $(BENCHTIME),1x) -timeout 1h ./synckey

# PKCS #11: operations per second and their duration with 1, 4 and 32 threads, through
# p11-kit's client and our module to three HSM processes, beside SoftHSM behind
# p11-kit's server, and beside Go's cryptography alone. About four minutes.
bench-pkcs11: packages
	$(GO) test -v -run '^$$' -bench PKCS11 -benchtime 1x -timeout 20m ./integration/figures

FIGURE_bench-create   := CreateAES
FIGURE_bench-insync   := InSync
FIGURE_bench-converge := Converge
TIME_bench-create     := 5s
TIME_bench-insync     := 1x
TIME_bench-converge   := 3x

# Every fuzz test in turn, for FUZZTIME each.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for name in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$name"; \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# Five HSMs and their callers while processes are killed and links cut, for TIME.
# SEED repeats what went wrong in an earlier run, which printed it.
chaos: TIME ?= 10m
chaos:
	HSMBACKUP_CHAOS_TIME=$(TIME) HSMBACKUP_CHAOS_SEED=$(SEED) $(GO) test -v -count 1 -timeout 0 -run '^TestChaos$$' ./integration

# With this, Go's runtime leaves nothing to chance or time in the simulation. Go builds all
# of its library for it, once: two to three minutes of one processor.
overlay:
	@sh integration/sim/overlay.sh $(GO) $(dir $(OVERLAY))

# Simulated clusters with seeds that follow FIRST, for TIME, or SEEDS of them. It says how
# many, the simulated hours per hour, and how to replay a seed that fails: that leaves all
# that happens in integration/sim/trace.txt.
sim: FIRST ?= $(shell date +%s)
sim: overlay
	$(GO) test -overlay $(OVERLAY) -v -count 1 -timeout 0 -run '^TestSimulation$$' ./integration/sim -sim.exact -sim.first $(FIRST) $(if $(SEEDS),-sim.seeds $(SEEDS),-sim.time $(or $(TIME),1h))

replay: overlay
	$(GO) test -overlay $(OVERLAY) -v -count 1 -run '^TestSeed$$' ./integration/sim -sim.exact -sim.seed $(SEED)
