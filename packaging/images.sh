#!/usr/bin/env bash
# Writes the container images into dist/NAME.oci, each a folder in the layout of OCI for all architectures, and NAME.oci.tar
# of it. `skopeo copy --all oci:dist/pikod.oci docker://REGISTRY/pikod` publishes one; podman and buildah read them as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=packaging/version.sh
. packaging/version.sh

mkdir -p "$out/build"
for arch in $arches; do
  compile "$arch" "$out/build/static-$arch" default
done
cp /etc/ssl/certs/ca-certificates.crt "$out/build/" # for packaging/oci/Containerfile
(cd packaging/oci && go build -o "$OLDPWD/$out/build/oci" .)
image() { # name, ports, title
  local binaries=() arch
  for arch in $arches; do binaries+=("$arch=$out/build/static-$arch/$1"); done
  "$out/build/oci" -name "$1" -ports "$2" -title "$3" -version "${VERSION//\~/-}" -revision "$commit" \
    -settings $'[log]\nformat = "json"' -epoch "$SOURCE_DATE_EPOCH" -out "$out/$1.oci" "${binaries[@]}"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --mode=u=rwX,go=rX \
    -cf "$out/$1.oci.tar" -C "$out/$1.oci" .
}
image pikod 8000,8001,8002,8003 "Node of a self-hosted tunnel to services that nothing can connect to"
image piko-agent "" "Agent that offers local services through Piko"
image piko-forward "" "Local addresses that lead to services behind Piko"
