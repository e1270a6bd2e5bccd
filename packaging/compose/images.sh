#!/usr/bin/env bash
# Writes the images that the compose file wants beside ours, Consul and the balancer, into dist/ for this architecture.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=packaging/version.sh
. packaging/version.sh
arch=$(go env GOARCH)
mkdir -p "$out/build"
out=$(cd "$out" && pwd)
make --no-print-directory bin/consul
consul=bin/consul
if go version -m "$consul" | grep -q 'CGO_ENABLED=1'; then # one for this machine, which wants its libraries
  consul=$out/build/consul
  (cd tools/consul && CGO_ENABLED=0 go build -ldflags='-s -w' -o "$consul" github.com/hashicorp/consul)
fi
(cd packaging/compose/balancer && go build -trimpath -ldflags='-s -w' -o "$out/build/balancer" .)
(cd packaging/oci && go build -o "$out/build/oci" .)
"$out/build/oci" -name consul -version dev -title "Consul, from tools/consul" -ports 8500 -epoch "$SOURCE_DATE_EPOCH" \
  -out "$out/consul.oci" "$arch=$consul"
"$out/build/oci" -name balancer -version dev -title "Balancer for the compose file" -epoch "$SOURCE_DATE_EPOCH" \
  -out "$out/balancer.oci" "$arch=$out/build/balancer"
