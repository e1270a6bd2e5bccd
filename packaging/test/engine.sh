# shellcheck shell=bash disable=SC2016,SC2034,SC2154
# For the other scripts: Docker's engine, from Debian, in a network namespace of its own, so that nothing of it shows outside.
need dockerd=docker.io docker=docker.io skopeo=skopeo iptables=iptables ip=iproute2 curl=curl
export DOCKER_HOST=unix://$work/docker.sock

start_engine() {
  unshare --net --mount bash -c 'ip link set lo up; exec dockerd --data-root "$1/data" --exec-root "$1/exec" -p "$1/pid" \
    -H "unix://$1/docker.sock" --storage-driver vfs' engine "$work" >"$work/engine.log" 2>&1 &
  engine=$!
  local i
  for ((i = 0; i < 100; i++)); do
    if docker version >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  tail "$work/engine.log" && return 1
}
stop_engine() {
  if [ -n "${engine:-}" ]; then kill "$engine" && wait "$engine"; fi
}
inside() { nsenter -t "$engine" -n "$@"; }

# take FOLDER NAME: loads an image in the layout of OCI under a name.
take() {
  skopeo --insecure-policy copy -q "oci:$1" "docker-archive:$work/image.tar:$2" && docker load -q -i "$work/image.tar"
  rm "$work/image.tar"
}

# until_true COMMAND...: waits for the command to succeed, 30 s at most.
until_true() {
  local i
  for ((i = 0; i < 150; i++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  "$@"
}

# prove NAME COMMAND...: the proof holds if the command ends with 0.
failed=0 proofs=0
prove() {
  local name=$1
  shift
  proofs=$((proofs + 1))
  if (set -e && "$@") >"$work/out" 2>&1; then
    echo "ok    $name"
  else
    failed=$((failed + 1))
    echo "FAIL  $name"
    tail -15 "$work/out" | sed 's/^/      /'
  fi
}
summary() {
  echo "$((proofs - failed)) passed, $failed failed"
  [ "$failed" -eq 0 ]
}
