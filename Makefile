# make test is what CI runs (.ci/run). It needs Go, git and a C compiler, which
# the race detector uses; the rest comes from the Go module proxy at the versions
# pinned here, in go.mod and in integration/minio/go.mod.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 30s

.PHONY: test check minio build drill bench fuzz

test: check minio
	CGO_ENABLED=1 $(GO) test -race -timeout 30m -p 2 ./...

check:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# The MinIO server of the tests, built once and kept in the user's cache folder.
minio:
	$(GO) test -v -count 1 -timeout 30m -run '^TestServerKeepsItsDataOverARestart$$' ./integration/miniotest

build:
	$(GO) build -o bin/ ./cmd/hsmbackup

drill:
	$(GO) run ./cmd/hsmbackup drill

bench:
	$(GO) test -run '^$$' -bench . -benchmem -p 1 -timeout 2h ./...

# Every fuzz test in turn, for FUZZTIME each.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for name in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$name"; \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done
