#!/usr/bin/env bash
# Installs the debs of two versions on a Debian of its own with a real systemd, and tries what an administrator does with
# them. Then the same with the rpms. Wants root, systemd-nspawn and debootstrap. ONLY=PATTERN runs the proofs with such names.
# Scripts run inside, and functions are called by name:
# shellcheck disable=SC2016,SC2317
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=packaging/tools.sh
. packaging/tools.sh
# shellcheck source=packaging/test/box.sh
. packaging/test/box.sh

new=${NEW:-dist}
old=${OLD:-dist/old} # the same program as version 0.0.9, which is what gets upgraded
if ! compgen -G "$new/*_amd64.deb" >/dev/null; then ARCHES=amd64 OUT=$new packaging/build.sh; fi
if ! compgen -G "$old/*_amd64.deb" >/dev/null; then ARCHES=amd64 OUT=$old VERSION=0.0.9 packaging/build.sh; fi
prepare_base
layer "$root"
(cd packaging/test/box && CGO_ENABLED=0 go build -o "$root/usr/bin/box" .)

# Three versions: 0.0.8 is 0.0.9 with other words in its settings, as those of an older version would be.
mkdir "$root/repo" "$root/repo-new" "$root/store" "$work/pikod"
cp "$old"/*_amd64.deb "$root/repo/"
cp "$old"/*_amd64.deb "$new"/*_amd64.deb "$root/repo-new/"
cp "$new"/*_amd64.deb "$root/store/"
for rpm in "$old"/*.x86_64.rpm "$new"/*.x86_64.rpm; do cp "$rpm" "$root/store/"; done
dpkg-deb -R "$old"/pikod_*.deb "$work/pikod"
sed -i 's/^Version: .*/Version: 0.0.8-1/' "$work/pikod/DEBIAN/control"
sed -i '1i# As it once was.' "$work/pikod/etc/piko/pikod.toml"
(cd "$work/pikod" && find . -type f -not -path './DEBIAN/*' -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums)
dpkg-deb --root-owner-group -b "$work/pikod" "$root/store/pikod_0.0.8-1_amd64.deb" >/dev/null
for repo in "$root/repo" "$root/repo-new"; do (cd "$repo" && dpkg-scanpackages --multiversion . >Packages 2>/dev/null); done
version=$(dpkg-deb -f "$(compgen -G "$new/pikod_*_amd64.deb")" Version)

boot
in_box apt-get update -q >/dev/null 2>&1
words+="version=$version
"
for part in deb-install deb-load deb-settings deb-faults deb-lifecycle rpm; do
  # shellcheck source=/dev/null
  . "packaging/test/$part.sh"
done
summary
