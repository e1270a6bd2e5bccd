#!/usr/bin/env bash
# Builds the debs and rpms of one version into dist/: `packaging/build.sh`. The same commit gives the same bytes,
# wherever and whenever it is built: all times are those of the commit. With --layout it only writes what the packages are
# made of beside the programs, into dist/layout/.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=packaging/version.sh
. packaging/version.sh

nfpm() { bin/nfpm "$@"; }

describe() { # name: sets what the templates want
  case $1 in
  pikod)
    pages="pikod.8 pikod.toml.5 piko.7"
    summary="node of a self-hosted tunnel to services that nothing can connect to"
    units="pikod.service pikod-proxy.socket pikod-upstream.socket pikod-admin.socket pikod-cluster.socket"
    stop="pikod-proxy.socket pikod-upstream.socket pikod-admin.socket pikod-cluster.socket pikod.service"
    ;;
  piko-agent)
    pages="piko-agent.8 piko-agent.toml.5"
    summary="agent that offers local services through Piko"
    units="piko-agent.service"
    stop="piko-agents.target piko-agent@*.service piko-agent.service"
    ;;
  piko-forward)
    pages="piko-forward.1 piko-forward.toml.5"
    summary="local addresses that lead to services behind Piko"
    units="piko-forward.service"
    stop="piko-forward@*.service piko-forward.service"
    ;;
  esac
}

fill() { # name, architecture, file
  sed -e '/^#RESTART#$/{
    r packaging/scripts/restart.sh
    d
  }' -e "/^#PAGES#\$/{
    r $stage/pages
    d
  }" "$3" | sed -e "s|@NAME@|$1|g" -e "s|@ARCH@|$2|g" -e "s|@VERSION@|$VERSION|g" -e "s|@SUMMARY@|$summary|g" -e "s|@SUMMARY_OF_RPM@|${summary^}|g" \
    -e "s|@UNITS@|$units|g" -e "s|@STOP@|$stop|g" -e "s|@DATE@|$when|g" -e "s|@STAGE@|$stage|g" -e "s|@OUT@|$out|g" \
    -e "s|@USER@|$(cat "packaging/sysusers/$1.conf")|g"
}

assemble() { # name: everything in $stage that nfpm.yaml names, for all architectures
  stage=$out/layout/$1
  rm -rf "$stage"
  mkdir -p "$stage"/{units,man,scripts}
  local script page section kind arch
  : >"$stage/pages"
  for script in packaging/scripts/*.{deb,rpm}; do
    fill "$1" any "$script" >"$stage/scripts/$(basename "$script")"
  done
  cp packaging/systemd/"$1"* "$stage/units/"
  if [ "$1" = piko-agent ]; then cp packaging/systemd/piko-agents.target "$stage/units/"; fi
  for page in $pages; do
    section=${page##*.}
    mkdir -p "$stage/man/man$section"
    gzip -9n <"man/$page" >"$stage/man/man$section/$page.gz"
    for kind in 'packager: deb' 'type: doc, packager: rpm'; do
      echo "  - {src: \"$stage/man/man$section/$page.gz\", dst: \"/usr/share/man/man$section/$page.gz\"," \
        "$kind, file_info: {mode: 0644}}"
    done >>"$stage/pages"
  done
  cat packaging/config/copyright >"$stage/copyright"
  { echo "License: MIT" && sed -n '/^Permission/,$s/^/ /p' LICENSE | sed 's/^ $/ ./'; } >>"$stage/copyright"
  fill "$1" any packaging/changelog.yml >"$stage/changelog.yml"
  fill "$1" any packaging/lintian-overrides >"$stage/lintian-overrides"
  for arch in $arches; do fill "$1" "$arch" nfpm.yaml >"$stage/nfpm-$arch.yaml"; done
  find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

mkdir -p "$out"
for name in pikod piko-agent piko-forward; do
  describe "$name"
  assemble "$name"
done
if [ "${1:-}" = --layout ]; then exit; fi
rm -f "$out"/*.deb "$out"/*.rpm
for arch in $arches; do
  compile "$arch" "$out/build/$arch" pie
  for name in pikod piko-agent piko-forward; do
    for format in deb rpm; do
      nfpm package --config "$out/layout/$name/nfpm-$arch.yaml" --packager "$format" --target "$out/" >"$out/nfpm.log" ||
        { cat "$out/nfpm.log" && exit 1; }
    done
  done
done
