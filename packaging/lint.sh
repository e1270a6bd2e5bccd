#!/usr/bin/env bash
# Asks every tool of the trade about the packages in dist/ and what they are made of. All of them must be silent.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=packaging/tools.sh
. packaging/tools.sh
need lintian=lintian rpmlint=rpmlint rpm=rpm mandoc=mandoc shellcheck=shellcheck zsh=zsh fish=fish cpio=cpio

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The pages that they refer to need not be installed here.
if mandoc -T lint man/*.[1578] | grep -v -e 'referenced manual not found' -e 'outdated mandoc.db'; then exit 1; fi
shellcheck -x packaging/*.sh packaging/*/*.sh
shellcheck -s bash packaging/completions/bash/*
for script in packaging/scripts/*.{deb,rpm}; do
  sed '/^#RESTART#$/{
    r packaging/scripts/restart.sh
    d
  }' "$script" | sed 's/@NAME@/x/g; s/@[A-Z]*@/x.service/g' >"$work/script"
  dash -n "$work/script" && shellcheck -s sh "$work/script"
done
for file in packaging/completions/zsh/*; do zsh -n "$file"; done
for file in packaging/completions/fish/*; do fish -n "$file"; done
for unit in packaging/systemd/*.service; do
  systemd-analyze security --offline=yes --threshold=11 "./$unit" >"$work/out" || { cat "$work/out" && exit 1; }
done

lintian -EI --pedantic --fail-on error,warning --allow-root dist/*.deb
# The rpms of nfpm 2.45 have absolute names in them: without this, rpmlint would unpack them over the system.
printf '#!/bin/sh\nexec %s --no-absolute-filenames "$@"\n' "$(command -v cpio)" >"$work/cpio"
chmod +x "$work/cpio"
PATH=$work:$PATH rpmlint -c packaging/rpmlint.toml dist/*.rpm >"$work/out" || { cat "$work/out" && exit 1; }
if ! grep -q ' 0 errors, 0 warnings' "$work/out"; then
  cat "$work/out"
  exit 1
fi
echo "nothing found"
