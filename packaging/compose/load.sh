#!/usr/bin/env bash
# Builds the images of the compose file for this architecture and loads them into Docker, with skopeo.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=packaging/tools.sh
. packaging/tools.sh
need skopeo=skopeo docker=docker.io
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
ARCHES=$(go env GOARCH) OUT=$work packaging/images.sh
OUT=$work packaging/compose/images.sh
for name in pikod piko-agent consul balancer; do
  skopeo --insecure-policy copy -q "oci:$work/$name.oci" "docker-archive:$work/image.tar:piko/$name:${PIKO_TAG:-dev}"
  docker load -i "$work/image.tar"
  rm "$work/image.tar"
done
