# shellcheck shell=bash
# For the other scripts: what is built, from which commit, and the time that everything in it bears.
# shellcheck disable=SC2034
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0 GOFLAGS=-mod=readonly

out=${OUT:-dist}
stamp=github.com/pikoproxy/piko/internal/daemon
commit=${COMMIT:-$(git rev-parse --short=12 HEAD)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
when=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
# A commit without a tag comes before the version it leads to, in the order of dpkg and rpm.
VERSION=${VERSION:-$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null | sed 's/^v//' || true)}
VERSION=${VERSION:-$(cat packaging/next)~dev.$(git rev-list --count HEAD)}
arches=${ARCHES:-amd64 arm64}

compile() { # architecture, folder, mode
  echo "build $1 $3"
  GOARCH=$1 go build -trimpath -buildvcs=false -buildmode="$3" -o "$2/" \
    -ldflags "-s -w -X $stamp.version=$VERSION -X $stamp.commit=$commit -X $stamp.date=$when" ./pikod ./piko-agent ./piko-forward
}
