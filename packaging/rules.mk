NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
# Newer ones need a newer nfpm, of which modules can't be had.
GORELEASER := github.com/goreleaser/goreleaser/v2@v2.15.1
HELM := helm.sh/helm/v3/cmd/helm@v3.18.6

.PHONY: packages
packages: bin/nfpm ## build debs, rpms and container images for amd64 and arm64 in dist/, twice, and compare them
	packaging/build.sh
	packaging/images.sh
	packaging/reproduce.sh

.PHONY: lint-packages
lint-packages: ## look for what lintian, rpmlint, mandoc, shellcheck and systemd-analyze can find in dist/
	packaging/lint.sh

.PHONY: lint-quick
lint-quick: ## look for what mandoc, shellcheck and systemd-analyze can find in pages, scripts and units
	packaging/lint.sh --quick

.PHONY: test-packages
test-packages: bin/nfpm ## install debs and rpms on a Debian of its own with a real systemd, and use them; wants root
	packaging/test/packages.sh

.PHONY: test-images
test-images: bin/consul ## run the images and the compose file on Docker's engine from Debian; wants root
	packaging/test/images.sh
	packaging/test/compose.sh

.PHONY: compose-images
compose-images: bin/consul ## build the images of packaging/compose and load them into Docker
	packaging/compose/load.sh

.PHONY: test-chart
test-chart: bin/helm ## check the Helm chart against Kubernetes' types and our settings
	packaging/helm/test.sh

.PHONY: snapshot
snapshot: bin/goreleaser bin/nfpm ## make archives, packages and checksums as for a release, and compare the packages with nfpm's
	packaging/test/snapshot.sh

bin/nfpm:
	GOBIN=$(CURDIR)/bin $(GO) install $(NFPM)

bin/goreleaser:
	GOBIN=$(CURDIR)/bin $(GO) install $(GORELEASER)

bin/helm:
	GOBIN=$(CURDIR)/bin $(GO) install $(HELM)
