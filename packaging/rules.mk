NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2

.PHONY: packages
packages: bin/nfpm ## build debs and rpms for amd64 and arm64 in dist/
	packaging/build.sh

.PHONY: images
images: ## build container images for amd64 and arm64 in dist/
	packaging/images.sh

.PHONY: lint-packages
lint-packages: ## look for what lintian, rpmlint, mandoc, shellcheck and systemd-analyze can find in dist/
	packaging/lint.sh

.PHONY: test-packages
test-packages: packages ## install the debs on a Debian of its own with a real systemd, and use them; wants root
	packaging/test/packages.sh

bin/nfpm:
	GOBIN=$(CURDIR)/bin $(GO) install $(NFPM)
