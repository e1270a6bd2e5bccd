NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2

.PHONY: packages
packages: bin/nfpm ## build debs, rpms and container images for amd64 and arm64 in dist/, twice, and compare them
	packaging/build.sh
	packaging/images.sh
	packaging/reproduce.sh

.PHONY: lint-packages
lint-packages: ## look for what lintian, rpmlint, mandoc, shellcheck and systemd-analyze can find in dist/
	packaging/lint.sh

.PHONY: test-packages
test-packages: bin/nfpm ## install the debs on a Debian of its own with a real systemd, and use them; wants root
	packaging/test/packages.sh

bin/nfpm:
	GOBIN=$(CURDIR)/bin $(GO) install $(NFPM)
