#!/usr/bin/env bash
# Writes the container images into dist/NAME.oci, each a folder in the layout of OCI for amd64 and arm64, and NAME.oci.tar
# of it. `skopeo copy oci:dist/pikod.oci docker://REGISTRY/pikod` publishes one; podman and buildah read them as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0

out=${OUT:-dist}
stamp=github.com/pikoproxy/piko/internal/daemon
commit=$(git rev-parse --short=12 HEAD)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
when=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
version=${VERSION:-$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null | sed 's/^v//' || true)}
version=${version:-$(cat packaging/next)~dev.$(git rev-list --count HEAD)}

mkdir -p "$out/build"
for arch in amd64 arm64; do
  GOARCH=$arch go build -trimpath -buildvcs=false -o "$out/build/static-$arch/" \
    -ldflags "-s -w -X $stamp.version=$version -X $stamp.commit=$commit -X $stamp.date=$when" ./pikod ./piko-agent ./piko-forward
done
(cd packaging/oci && go build -o "../../$out/build/oci" .)
image() { # name, ports, title
  "$out/build/oci" -name "$1" -ports "$2" -title "$3" -version "${version//\~/-}" -revision "$commit" -epoch "$epoch" \
    -out "$out/$1.oci" amd64="$out/build/static-amd64/$1" arm64="$out/build/static-arm64/$1"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" -cf "$out/$1.oci.tar" -C "$out/$1.oci" .
}
image pikod 8000,8001,8002,8003 "Node of a self-hosted tunnel to services that nothing can connect to"
image piko-agent "" "Agent that offers local services through Piko"
image piko-forward "" "Local addresses that lead to services behind Piko"
(cd "$out" && sha256sum -- *.oci.tar)
