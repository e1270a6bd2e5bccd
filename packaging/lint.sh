#!/usr/bin/env bash
# Asks every tool of the trade about the packages in dist/ and what they are made of. All of them must be silent. With
# --quick it leaves the packages out.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=packaging/tools.sh
. packaging/tools.sh
need mandoc=mandoc shellcheck=shellcheck zsh=zsh fish=fish systemd-analyze=systemd
if [ "${1:-}" != --quick ]; then need lintian=lintian rpmlint=rpmlint rpm=rpm cpio=cpio; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The pages that they refer to need not be installed here.
if mandoc -T lint man/*.[1578] 2>&1 | grep -v -e 'referenced manual not found' -e 'outdated mandoc.db'; then exit 1; fi
shellcheck -x packaging/*.sh packaging/{test,compose,helm}/*.sh
shellcheck -s bash packaging/completions/bash/*
for script in packaging/scripts/*.{deb,rpm}; do
  sed '/^#RESTART#$/{
    r packaging/scripts/restart.sh
    d
  }' "$script" | sed 's/@NAME@/x/g; s/@[A-Z]*@/x.service y.service/g' >"$work/script"
  dash -n "$work/script" && shellcheck -s sh "$work/script"
done
for file in packaging/completions/zsh/*; do zsh -n "$file"; done
for file in packaging/completions/fish/*; do fish -n "$file"; done
for unit in packaging/systemd/*.service; do
  systemd-analyze security --offline=yes --threshold=11 "./$unit" >"$work/out" || { cat "$work/out" && exit 1; }
done

if [ "${1:-}" = --quick ]; then exit; fi
# In a Go program strings stand side by side, so words meet by chance.
lintian -EI --pedantic --suppress-tags spelling-error-in-binary --fail-on error,warning --allow-root dist/*.deb
# The rpms of nfpm 2.45 have absolute names in them: without this, rpmlint would unpack them over the system.
printf '#!/bin/sh\nexec %s --no-absolute-filenames "$@"\n' "$(command -v cpio)" >"$work/cpio"
chmod +x "$work/cpio"
PATH=$work:$PATH rpmlint -c packaging/rpmlint.toml dist/*.rpm >"$work/out" || { cat "$work/out" && exit 1; }
if ! grep -q ' 0 errors, 0 warnings' "$work/out"; then
  cat "$work/out"
  exit 1
fi
echo "nothing found"
