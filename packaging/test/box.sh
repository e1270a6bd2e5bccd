# shellcheck shell=bash
# For the other scripts: a Debian of its own with a real systemd, by systemd-nspawn, without a network. What is kept in
# $PIKO_ROOT is never changed: each test has a layer above it, in memory.
# Scripts run inside, and functions are called by name:
# shellcheck disable=SC2016,SC2034,SC2317
export LC_ALL=C
need systemd-nspawn=systemd-container debootstrap=debootstrap dpkg-scanpackages=dpkg-dev pgrep=procps

base=${PIKO_ROOT:-/var/cache/piko-packaging/bookworm}
work=$(mktemp -d)
root=$work/root
failed=0
proofs=0

prepare_base() {
  if ! [ -e "$base/etc/debian_version" ]; then
    mkdir -p "$base"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,curl,man-db,init-system-helpers,ca-certificates \
      bookworm "$base" >"$work/log" || { tail "$work/log" && exit 1; }
  fi
  if ! [ -e "$base/usr/bin/rpm" ] || ! [ -e "$base/usr/sbin/needrestart" ]; then
    cp /etc/resolv.conf "$base/etc/resolv.conf"
    cp /etc/apt/apt.conf.d/* "$base/etc/apt/apt.conf.d/" 2>/dev/null || true
    { chroot "$base" apt-get update -q && chroot "$base" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends rpm needrestart; } >"$work/log" 2>&1 || { tail "$work/log" && exit 1; }
  fi
}

# layer DIRECTORY: mounts the Debian there, with what is changed in it kept in memory.
layer() {
  mkdir -p "$1" "$1.layer"
  mount -t tmpfs tmpfs "$1.layer"
  mkdir "$1.layer/upper" "$1.layer/work"
  mount -t overlay overlay -o "lowerdir=$base,upperdir=$1.layer/upper,workdir=$1.layer/work" "$1"
  rm -f "$1"/etc/apt/sources.list.d/*
  echo 'deb [trusted=yes] file:/repo ./' >"$1/etc/apt/sources.list"
  echo '127.0.0.1 localhost' >"$1/etc/hosts"
  echo 'path-include /usr/share/man/*' >"$1/etc/dpkg/dpkg.cfg.d/zz-man"
}

finish() {
  local status=$?
  set +e
  if [ -n "${leader:-}" ]; then kill -s RTMIN+4 "$leader"; fi # systemd powers off
  wait "${nspawn:-}" 2>/dev/null
  local mounted
  for mounted in "$work"/*; do umount -R "$mounted" 2>/dev/null; done
  rm -rf --one-file-system "$work"
  exit "$status"
}
trap finish EXIT

# until_true COMMAND...: waits for the command to succeed, 30 s at most.
until_true() {
  local i
  for ((i = 0; i < 150; i++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  return 1
}
find_leader() {
  leader=$(pgrep -P "$nspawn" -o) && [ "$(cat "/proc/$leader/comm")" = systemd ]
}

boot() {
  mkdir -p /run/systemd/nspawn
  mountpoint -q /run/systemd/nspawn || mount -t tmpfs tmpfs /run/systemd/nspawn
  SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --register=no --keep-unit --private-network --console=pipe \
    -D "$root" -b </dev/null >"$work/console" 2>&1 &
  nspawn=$!
  until_true find_leader || { cat "$work/console" && exit 1; }
  until_true in_box systemctl is-system-running --wait || true
}

clean=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C)
in_box() { nsenter -t "$leader" -a -- "${clean[@]}" "$@"; }

# What scripts inside may use. A negation in a script with -e proves nothing; fails does. To stop a node takes two steps: in
# one, systemd would stop the service first, and the next connection start it again.
words='
fails() { if "$@"; then return 1; fi; }
halt() { systemctl stop "pikod-*.socket"; systemctl stop pikod; }
eventually() { local i; for ((i = 0; i < 100; i++)); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.1; done; "$@"; }
web() { curl -sS --fail -m 20 -o /dev/null -H "x-piko-endpoint: web" http://127.0.0.1:8000/; }
main_pid() { systemctl show -P MainPID "$1"; }
moved() { test "$(main_pid "$1")" != "$2" && systemctl is-active "$1"; }
# said TEXT [SINCE]: the journal of the node has it.
said() { journalctl --sync; journalctl -u pikod -o cat --since "${2:--1h}" | grep -F -e "$1" >/dev/null; }
# hand_over UNIT: by the signal that an upgrade sends.
hand_over() { local old; old=$(main_pid "$1"); systemctl kill --kill-who=main -s USR2 "$1"; eventually moved "$1" "$old"; }
load() { rm -f /run/enough; box load -endpoint web -until /run/enough "$@" >/run/load 2>&1 & loader=$!; sleep 1; }
# enough: ends the load, and passes if none of its requests failed or was slow.
enough() { local rc=0; touch /run/enough; wait "$loader" || rc=$?; cat /run/load; return "$rc"; }
'

# prove NAME SCRIPT: runs a script inside; the proof holds if it ends with 0. Lines that start with "note: " are shown.
prove() {
  if [ -n "${ONLY:-}" ] && ! [[ $1 =~ $ONLY ]]; then return; fi
  proofs=$((proofs + 1))
  if timeout 120 nsenter -t "$leader" -a -- "${clean[@]}" bash -euo pipefail -c "$words $2" >"$work/out" 2>&1; then
    echo "ok    $1"
    sed -n 's/^note: /      /p' "$work/out"
  else
    failed=$((failed + 1))
    echo "FAIL  $1"
    sed 's/^/      /' "$work/out" | tail -25
  fi
}

summary() {
  echo "$((proofs - failed)) passed, $failed failed"
  [ "$failed" -eq 0 ]
}
