#!/usr/bin/env bash
# Builds the debs and rpms of one version into dist/: `packaging/build.sh`. The same commit gives the same bytes,
# wherever and whenever it is built: all times are those of the commit.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=packaging/version.sh
. packaging/version.sh
stage=$out/stage

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
    -e "s|@UNITS@|$units|g" -e "s|@STOP@|$stop|g" -e "s|@DATE@|$when|g" -e "s|@STAGE@|$stage|g" \
    -e "s|@USER@|$(cat "packaging/sysusers/$1.conf")|g"
}

assemble() { # name, architecture: everything in $stage that nfpm.yaml names
  rm -rf "$stage"
  mkdir -p "$stage"/{units,man,scripts}
  local script page section kind
  : >"$stage/pages"
  for script in packaging/scripts/*.{deb,rpm}; do
    fill "$1" "$2" "$script" >"$stage/scripts/$(basename "$script")"
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
  cp "$out/build/$2/$1" "$stage/$1"
  { echo "License: MIT" && sed -n '/^Permission/,$s/^/ /p' LICENSE | sed 's/^ $/ ./'; } >>"$stage/copyright"
  fill "$1" "$2" packaging/changelog.yml >"$stage/changelog.yml"
  fill "$1" "$2" packaging/lintian-overrides >"$stage/lintian-overrides"
  fill "$1" "$2" nfpm.yaml >"$stage/nfpm.yaml"
  find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

mkdir -p "$out"
rm -f "$out"/*.deb "$out"/*.rpm
for arch in $arches; do
  compile "$arch" "$out/build/$arch" pie
  for name in pikod piko-agent piko-forward; do
    describe "$name"
    assemble "$name" "$arch"
    for format in deb rpm; do
      nfpm package --config "$stage/nfpm.yaml" --packager "$format" --target "$out/" >"$out/nfpm.log" || { cat "$out/nfpm.log" && exit 1; }
    done
  done
done
rm -rf "$stage"
