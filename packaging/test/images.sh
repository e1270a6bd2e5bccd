#!/usr/bin/env bash
# Runs the images of dist/ under Docker's engine from Debian, as they are meant to run: with nothing to write on, as a user
# without a name, and without a privilege. Wants root.
# shellcheck disable=SC2317
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=packaging/tools.sh
. packaging/tools.sh
work=$(mktemp -d)
# shellcheck source=packaging/test/engine.sh
. packaging/test/engine.sh

images=${IMAGES:-dist}
if ! [ -e "$images/pikod.oci/index.json" ]; then packaging/images.sh; fi
finish() {
  local status=$?
  set +e
  docker ps -aq | xargs -r docker rm -f >/dev/null
  kill "${service:-}" 2>/dev/null
  stop_engine
  rm -rf --one-file-system "$work"
  exit "$status"
}
trap finish EXIT
(cd packaging/test/box && CGO_ENABLED=0 go build -o "$work/box" .)
start_engine
for name in pikod piko-agent piko-forward; do take "$images/$name.oci" "piko/$name:test" >/dev/null; done
inside "$work/box" serve 127.0.0.1:9000 >"$work/service.log" 2>&1 &
service=$!

start() { # name, image, arguments
  local name=$1 image=$2
  shift 2
  docker run -d --name "$name" --network host --read-only --cap-drop ALL --security-opt no-new-privileges "piko/$image:test" "$@"
}
web() { inside curl -sS --fail -m 20 -H 'x-piko-endpoint: web' "http://127.0.0.1:8000$1"; }
pid() { docker inspect -f '{{.State.Pid}}' "$1"; }

start_all() {
  start node pikod
  until_true docker exec node /usr/bin/pikod healthcheck --ready
  start agent piko-agent http web 127.0.0.1:9000
  start agent-tcp piko-agent tcp raw 127.0.0.1:9000
  printf '[[forwards]]\nlisten = "127.0.0.1:7000"\nendpoint = "raw"\n' >"$work/forward.toml"
  chmod 644 "$work/forward.toml"
  docker run -d --name forward --network host --read-only --cap-drop ALL -v "$work/forward.toml:/etc/piko/piko-forward.toml:ro" \
    piko/piko-forward:test
}
prove 'node, agents and forwarder start' start_all
prove 'a request comes through the tunnel' until_true web /
prove 'TCP comes through the forwarder' until_true inside curl -sS --fail -m 5 http://127.0.0.1:7000/
unprivileged() {
  local c
  for c in node agent forward; do
    grep -P '^Uid:\t65532\t65532\t65532\t65532' "/proc/$(pid $c)/status"
    grep -P '^CapBnd:\t0000000000000000' "/proc/$(pid $c)/status"
    grep -P '^\S+ / \S+ ro[, ]' "/proc/$(pid $c)/mounts"
    test "$(docker inspect -f '{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}' $c)" = '65532:65532 true'
  done
}
prove 'as user 65532, without a capability, on a root that is read-only' unprivileged
prove 'healthcheck passes while the node is ready' docker exec node /usr/bin/pikod healthcheck --ready
health_fails() { if docker exec node /usr/bin/pikod healthcheck --admin http://127.0.0.1:1; then return 1; fi; }
prove 'healthcheck fails when nobody answers' health_fails
json() {
  local c
  for c in node agent; do
    docker logs $c >"$work/log" 2>&1
    test -s "$work/log"
    if grep -v '^{.*}$' "$work/log"; then return 1; fi
  done
}
prove 'the log is JSON, line by line' json
drains() {
  web '/slow?s=4' >"$work/slow" &
  local slow=$!
  sleep 1
  docker stop -t 30 node
  wait "$slow"
  grep -q last "$work/slow"
  test "$(docker inspect -f '{{.State.ExitCode}}' node)" = 0
  docker logs node 2>&1 | grep '"msg":"stopped"' | grep '"code":0'
}
prove 'SIGTERM lets a request finish, and then ends the node with 0' drains
containerfile() {
  docker build -q -f packaging/oci/Containerfile --target pikod -t piko/made:test "$images/build"
  docker run --rm --read-only --cap-drop ALL piko/made:test --version
}
prove 'the Containerfile makes such an image too' containerfile
both() {
  local index name
  for name in pikod piko-agent piko-forward; do
    index=$(grep -oP 'sha256:\K[0-9a-f]{64}' "$images/$name.oci/index.json" | head -1)
    grep -o '"architecture":"[a-z0-9]*"' "$images/$name.oci/blobs/sha256/$index" | sort | tr '\n' ' ' |
      grep -x '"architecture":"amd64" "architecture":"arm64" '
  done
}
if [ "${ARCHES:-both}" = both ]; then prove 'each image is for amd64 and arm64' both; fi
summary
