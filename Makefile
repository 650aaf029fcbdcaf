# SPDX-FileCopyrightText: The cfs-pull authors
# SPDX-License-Identifier: Apache-2.0
#
#   make demo         build, and pull an image that the command makes itself
#   make test         every test that this machine and user can run
#   make build        cfs-pull, one static binary
#   make lint         gofmt, SPDX headers, go vet, staticcheck
#   make race         the tests with the race detector (needs a C compiler)
#   make fuzz-short   every fuzz target for FUZZTIME
#   make bench        Go benchmarks of every package
#
# What the tests can use more than Go: scripts/install-deps, and
# scripts/install-vm for the micro-VM, both as root.

GO ?= go
TAGS := containers_image_openpgp
# Without cgo: the tests run what is shipped.
export CGO_ENABLED ?= 0
# What scripts/install-deps made for Python, if it had to.
PYTHON_ENV := $(or $(CFS_PULL_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cfs-pull)/python
ifneq ($(wildcard $(PYTHON_ENV)/bin),)
export PATH := $(PYTHON_ENV)/bin:$(PATH)
endif
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TESTFLAGS ?=
PACKAGES ?= ./...
FUZZTIME ?= 10s
BENCH ?= .
BENCHTIME ?= 1s

.PHONY: build demo test race lint fuzz-short bench clean

build:
	$(GO) build -trimpath -tags $(TAGS) -ldflags '-s -w -X main.version=$(VERSION)' -o cfs-pull ./cmd/cfs-pull

demo: build
	$(GO) run -tags $(TAGS) ./internal/demo -binary cfs-pull

# The limit is for the whole of a package; the micro-VM emulates a processor.
test:
	$(GO) test -tags $(TAGS) -timeout 25m $(TESTFLAGS) $(PACKAGES)

# With cgo the storage library would want C headers of file systems.
race:
	CGO_ENABLED=1 $(GO) test -race -tags '$(TAGS) exclude_graphdriver_btrfs' -timeout 40m $(TESTFLAGS) $(PACKAGES)

lint:
	@files=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$files" || { echo "not gofmt'ed: $$files"; exit 1; }
	@files=$$(git grep -L SPDX-License-Identifier -- '*.go' '*.s' Makefile .ci scripts bench); \
		test -z "$$files" || { echo "no SPDX header: $$files"; exit 1; }
	$(GO) vet -tags $(TAGS) $(PACKAGES)
	$(GO) tool -modfile=tools/go.mod staticcheck -tags $(TAGS) $(PACKAGES)

# One target at a time, as go test wants it.
fuzz-short:
	@set -e; for package in $$($(GO) list -tags $(TAGS) $(PACKAGES)); do \
		targets=$$($(GO) test -tags $(TAGS) -list '^Fuzz' $$package | grep '^Fuzz' || :); \
		for target in $$targets; do \
			echo "$$package $$target"; \
			$(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

bench:
	$(GO) test -tags $(TAGS) -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem -timeout 60m $(PACKAGES)

clean:
	rm -f cfs-pull
