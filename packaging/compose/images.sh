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
(cd packaging/compose/balancer && go build -trimpath -ldflags='-s -w' -o "$out/build/balancer" .)
(cd packaging/oci && go build -o "$out/build/oci" .)
"$out/build/oci" -name consul -version dev -title "Consul, from tools/consul" -ports 8500 -epoch "$SOURCE_DATE_EPOCH" \
  -out "$out/consul.oci" "$arch=bin/consul"
"$out/build/oci" -name balancer -version dev -title "Balancer for the compose file" -epoch "$SOURCE_DATE_EPOCH" \
  -out "$out/balancer.oci" "$arch=$out/build/balancer"
