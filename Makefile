# Everything needs Go only; what else a target needs it builds, or installs from Debian by `make tools`.
SHELL := /bin/bash
GO ?= go
# A program built for the race detector sleeps a second before it exits, which adds up in tests that run hundreds.
export GORACE ?= atexit_sleep_ms=0
VERSION ?= $(patsubst v%,%,$(shell git describe --tags --dirty 2>/dev/null || echo dev))
COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)
DATE ?= $(shell git log -1 --format=%cI 2>/dev/null)
FUZZTIME ?= 20s
STAMP := github.com/pikoproxy/piko/internal/daemon
LDFLAGS := -s -w -X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT) -X $(STAMP).date=$(DATE)
LINTER := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/pikod, bin/piko-agent and bin/piko-forward, static and stamped with the version
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./pikod ./piko-agent ./piko-forward

.PHONY: demo
demo: build ## see HTTP and TCP go through a node, agents and a forwarder on this machine
	$(GO) run ./internal/demo -bin bin

.PHONY: cluster
cluster: build bin/consul ## see three nodes with a real Consul answer for each other on this machine
	$(GO) run ./internal/demo -bin bin -cluster

.PHONY: test
test: tools build ## run all tests under the race detector, with real processes
	@$(MAKE) --keep-going --no-print-directory unit e2e

.PHONY: unit
unit: bin/consul bin/pebble ## test the packages under the race detector
	$(GO) test -race -count=1 -timeout=20m ./...
	@# Under the race detector their system calls are others.
	$(GO) test -count=1 -timeout=5m ./internal/socket ./internal/relay
	cd bench && $(GO) test -race -count=1 -timeout=10m ./...

.PHONY: e2e
e2e: build bin/consul bin/pebble ## test the binaries in bin/ with curl, redis, gRPC, Consul and others
	cd e2e && PIKO_BIN=$(CURDIR)/bin $(GO) test -race -count=1 -timeout=30m ./...

.PHONY: bench
bench: build bin/bench bin/consul ## measure beside nginx, plain relays and a naive tunnel: some minutes, see bench/README.md
	bin/bench $(BENCH)

.PHONY: bench-full
bench-full: build bin/bench bin/consul ## the same with more cases, more rounds and 10,000 tunnels: about twenty minutes
	bin/bench -full $(BENCH)

.PHONY: bin/bench
bin/bench:
	cd bench && $(GO) build -o ../bin/bench .

.PHONY: test-cluster
test-cluster: tools build bin/consul ## on a quiet machine: kill, stop and cut off nodes and Consul for long, and hold bounds of time: 25 minutes
	cd e2e && E2E_QUIET=1 PIKO_BIN=$(CURDIR)/bin $(GO) test -tags=cluster -count=1 -v -timeout=60m \
		-run='^TestLong|^TestHandover|UnderLoad$$|AfterEveryCrash$$|SurvivesAKill$$|NewEndpointAtOnce$$|OverZones$$|ItMust$$' .

# Of each kind of bytes from outside, the fuzz target that sees most of what is made of them.
SECURITY_FUZZ := guard:FuzzSplit guard:FuzzNetHTTP guard:FuzzOutput guard:FuzzNext endpoint:FuzzFromHost \
	tunnel:FuzzNothingConfusesALink tunnel:FuzzFramesMeanTheSameHoweverTheyAreSplit tunnel:FuzzControlMessage websocket:FuzzConn \
	auth:FuzzVerify config:FuzzLoad consul:FuzzBucket cluster:FuzzPieces proxy:FuzzClientOf proxy:FuzzAnswer proxy:FuzzBothWays \
	h2:FuzzAnswer
# Where the Go vulnerability database is at hand, such as file:///srv/vulndb. Empty: it is not asked.
VULNDB ?=

.PHONY: test-security
test-security: build bin/consul bin/pebble bin/h2spec ## try attacks, limits, secrets, rotation and others' old faults, and fuzz: a quarter of an hour
	.ci/tools security
	$(GO) test -count=1 -timeout=15m ./internal ./internal/auth ./internal/guard ./internal/limit ./internal/tlsconf ./internal/admin \
		./internal/console ./internal/endpoint ./internal/websocket ./internal/tunnel ./internal/proxy ./internal/h2 ./internal/acme
	$(GO) test -count=1 -timeout=10m -run='CVE|Corpus|Tenant|Token|Begun|Limit|Abuse|Guest|Secret|Open|Refus|Denylist|ClientCA|RemovedCA|Certificate|Drains|NobodyElse|NoSession|Guarded|Attempts' \
		./internal/server ./internal/cluster ./internal/config ./pikod
	cd e2e && E2E_QUIET=1 PIKO_BIN=$(CURDIR)/bin $(GO) test -tags=security -count=1 -v -timeout=30m \
		-run='^TestSecurity|^TestLogsAre|GetsACertificate$$|ACertificateOnce$$' .
	@$(MAKE) --no-print-directory fuzz-security
	@if [ -n "$(VULNDB)" ]; then $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.1.4 -db "$(VULNDB)" ./...; fi

.PHONY: fuzz-security
fuzz-security: ## run the fuzz targets that stand for their kind for FUZZTIME (20s) each
	@set -e; for target in $(SECURITY_FUZZ); do GO=$(GO) .ci/fuzz "./internal/$${target%:*}" "$${target#*:}" $(FUZZTIME); done

bin/h2spec:
	GOBIN=$(CURDIR)/bin $(GO) install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible

.PHONY: tools
tools: ## install what the tests use from Debian, if it is missing
	.ci/tools

# A module of its own, so that nothing of Consul's server gets into ours. It takes some minutes the first time.
bin/consul:
	cd tools/consul && CGO_ENABLED=0 $(GO) build -mod=readonly -ldflags='-s -w' -o ../../bin/consul github.com/hashicorp/consul

# An authority for tests of certificates, and a DNS server for it to ask.
bin/pebble:
	cd tools/pebble && CGO_ENABLED=0 $(GO) build -mod=readonly -o ../../bin/ \
		github.com/letsencrypt/pebble/v2/cmd/pebble github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv

.PHONY: lint
lint: bin/golangci-lint ## look for what a tool can find
	$(GO) vet ./...
	bin/golangci-lint run ./...
	cd e2e && ../bin/golangci-lint run --build-tags=cluster,security ./...
	cd bench && ../bin/golangci-lint run ./...

bin/golangci-lint:
	GOBIN=$(CURDIR)/bin $(GO) install $(LINTER)

.PHONY: fmt
fmt: bin/golangci-lint ## format the source
	bin/golangci-lint fmt ./...

.PHONY: generate
generate: ## write what is generated from the source: configs/*.toml, man/*.toml.5
	$(GO) generate ./...

.PHONY: check-generated
check-generated: ## fail if what is generated is not up to date
	@old=$$(mktemp -d) && trap 'rm -rf "$$old"' EXIT && cp -r configs man "$$old" && $(GO) generate ./... && \
		diff -ru "$$old/configs" configs && diff -ru "$$old/man" man

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (20s)
	@set -e; grep -roE --include='*_test.go' --exclude-dir=e2e '^func Fuzz[A-Za-z0-9]+' . | while IFS=: read -r file name; do \
		GO=$(GO) .ci/fuzz "$$(dirname "$$file")" "$${name#func }" $(FUZZTIME); done

.PHONY: clean
clean: ## remove what was built, except the linter
	rm -f bin/pikod bin/piko-agent bin/piko-forward bin/bench

include packaging/rules.mk
