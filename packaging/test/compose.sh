#!/usr/bin/env bash
# Starts packaging/compose/compose.yaml on Docker's engine from Debian, with no network to pull anything from, and tries what
# it promises. Wants root.
# shellcheck disable=SC2317
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=packaging/tools.sh
. packaging/tools.sh
work=$(mktemp -d)
# shellcheck source=packaging/test/engine.sh
. packaging/test/engine.sh
need docker-compose=docker-compose

images=${IMAGES:-dist}
if ! [ -e "$images/pikod.oci/index.json" ]; then ARCHES=amd64 packaging/images.sh; fi
OUT=$images packaging/compose/images.sh
finish() {
  local status=$?
  set +e
  if [ "$failed" -gt 0 ]; then compose logs --no-color --tail 15; fi
  docker ps -aq | xargs -r docker rm -f >/dev/null
  stop_engine
  rm -rf --one-file-system "$work"
  exit "$status"
}
trap finish EXIT
compose() { docker-compose -f packaging/compose/compose.yaml -p piko "$@"; }
start_engine
for name in pikod piko-agent consul balancer; do take "$images/$name.oci" "piko/$name:dev" >/dev/null; done
hello() { inside curl -sS --fail -m 20 -o /dev/null -H 'Host: hello.piko.localhost' http://127.0.0.1:8000/health; }
all_up() { test "$(docker exec piko_node1_1 /usr/bin/pikod status nodes | grep -cE ' (up|active) ')" = 3; }
many() { local i; for i in $(seq "$1"); do hello; done; }
stop_one() {
  { for i in $(seq 60); do hello || exit 1; sleep 0.05; done; } &
  local load=$!
  compose stop -t 60 node2
  wait "$load"
}

prove 'the file is sound' compose config -q
prove 'everything starts, and nothing is pulled' compose up -d --no-build
prove 'a request reaches the service through the balancer and whichever node it chooses' until_true hello
prove 'the three nodes see each other' until_true all_up
prove 'requests reach it through every node' many 12
prove 'a node that stops fails no request' stop_one
prove 'and comes back' compose start node2
summary
