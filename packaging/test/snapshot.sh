#!/usr/bin/env bash
# Makes a snapshot by goreleaser, and proves that its packages have what nfpm's have: the same files with the same modes and
# bytes, the same control files and the same scripts.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=packaging/tools.sh
. packaging/tools.sh
need rpm=rpm dpkg-deb=dpkg
# shellcheck source=packaging/version.sh
. packaging/version.sh
export VERSION

skip=publish
if ! command -v syft >/dev/null; then skip+=,sbom && echo "no syft, so no SBOMs"; fi
if [ -z "${SNAPSHOT:-}" ]; then bin/goreleaser release --snapshot --clean --skip="$skip"; fi
if [ -z "${PACKAGES:-}" ]; then packaging/build.sh; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# facts FILE: all that a package says and holds.
facts() {
  rm -rf "$work/x" && mkdir "$work/x"
  case $1 in
  *.deb)
    dpkg-deb -c "$1" | awk '{ print $1, $2, $3, $6, $7, $8 }'
    # goreleaser writes the variant of the architecture that Go compiled for.
    dpkg-deb -R "$1" "$work/x" && sed -i -e '/^Architecture-Variant:/d' "$work/x/DEBIAN/control"
    ;;
  *.rpm)
    rpm -qp --nosignature --qf '[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags} %{FILEDIGESTS} %{FILENAMES}\n]' "$1"
    rpm -qpi --nosignature "$1" | grep -v -e '^Build Date' -e '^Size'
    rpm -qp --nosignature --scripts --requires --provides --changelog "$1"
    ;;
  esac
  (cd "$work/x" && find . -type f -print0 | sort -z | xargs -0r sha256sum)
}
count=0
for mine in dist/*.deb dist/*.rpm; do
  facts "$mine" >"$work/mine"
  facts "dist/goreleaser/$(basename "$mine")" >"$work/theirs"
  if ! diff "$work/mine" "$work/theirs"; then echo "$(basename "$mine") differs" >&2 && exit 1; fi
  count=$((count + 1))
done
(cd dist/goreleaser && sha256sum --quiet -c SHA256SUMS)
for arch in amd64 arm64; do
  tar -tzf "dist/goreleaser/piko_${VERSION}_linux_$arch.tar.gz" | grep -cE '^[^/]*/(pikod|piko-agent|piko-forward|LICENSE)$' | grep -qx 4
done
echo "$count packages of the snapshot equal those of nfpm"
