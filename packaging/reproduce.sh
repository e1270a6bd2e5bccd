#!/usr/bin/env bash
# Builds everything in dist/ once more from a copy of the source in another folder, with other times, another umask and
# nothing in the build cache, and fails unless each file has the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=packaging/version.sh
. packaging/version.sh

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What is not in git, and the tests, belong to no package: without them Go has nothing that is theirs to read.
umask 077
mkdir "$work/somewhere" "$work/cache"
git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null | tar -c -T - | tar -x -m -C "$work/somewhere"
mkdir "$work/somewhere/bin"
cp bin/nfpm "$work/somewhere/bin/"
(
  cd "$work/somewhere"
  export VERSION SOURCE_DATE_EPOCH COMMIT=$commit GOCACHE=$work/cache OUT=other TZ=Asia/Tokyo
  packaging/build.sh >/dev/null
  packaging/images.sh >/dev/null
)
sums() { (cd "$1" && sha256sum -- *.deb *.rpm *.oci.tar); }
sums "$out" >"$out/SHA256SUMS"
diff "$out/SHA256SUMS" <(sums "$work/somewhere/other") || { echo "a second build has other bytes" >&2 && exit 1; }
cat "$out/SHA256SUMS"
echo "built twice with the same bytes: $(wc -l <"$out/SHA256SUMS") files"
