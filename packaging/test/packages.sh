#!/usr/bin/env bash
# Installs the debs in dist/ on a Debian of its own with a real systemd, and tries what an administrator does with them.
# Wants root, systemd-nspawn and debootstrap. The Debian is kept in $PIKO_ROOT for the next time.
# Scripts run inside, and functions are called by name:
# shellcheck disable=SC2016,SC2317
set -euo pipefail

cd "$(dirname "$0")/../.."
export LC_ALL=C
# shellcheck source=packaging/tools.sh
. packaging/tools.sh
need systemd-nspawn=systemd-container debootstrap=debootstrap dpkg-scanpackages=dpkg-dev pgrep=procps

base=${PIKO_ROOT:-/var/cache/piko-packaging/bookworm}
work=$(mktemp -d)
root=$work/root
failed=0

if ! [ -e "$base/etc/debian_version" ]; then
  mkdir -p "$base"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,curl,man-db,init-system-helpers,ca-certificates \
    bookworm "$base" >"$work/debootstrap.log" || { tail "$work/debootstrap.log" && exit 1; }
fi

finish() {
  local status=$?
  set +e
  if [ -n "${leader:-}" ]; then kill -s RTMIN+4 "$leader"; fi # systemd powers off
  wait "${nspawn:-}" 2>/dev/null
  umount -R "$root" "$work/layer" 2>/dev/null
  rm -rf --one-file-system "$work"
  exit "$status"
}
trap finish EXIT

# A layer above the Debian that is kept, so that each run finds it as new.
mkdir -p "$root" "$work/layer"
mount -t tmpfs tmpfs "$work/layer"
mkdir "$work/layer/upper" "$work/layer/work"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/layer/upper,workdir=$work/layer/work" "$root"
mkdir "$root/repo"
cp dist/*_amd64.deb "$root/repo/"
(cd "$root/repo" && dpkg-scanpackages --multiversion . >Packages 2>/dev/null)
echo 'deb [trusted=yes] file:/repo ./' >"$root/etc/apt/sources.list"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
rm -f "$root"/etc/apt/sources.list.d/*
echo 'path-include /usr/share/man/*' >"$root/etc/dpkg/dpkg.cfg.d/zz-man"

mkdir -p /run/systemd/nspawn
mountpoint -q /run/systemd/nspawn || mount -t tmpfs tmpfs /run/systemd/nspawn
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --register=no --keep-unit --private-network --console=pipe \
  -D "$root" -b </dev/null >"$work/console" 2>&1 &
nspawn=$!

# until TEXT COMMAND...: waits for the command to succeed, 30 s at most.
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
in_box() { nsenter -t "$leader" -a -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
# A negation in a script with -e proves nothing; fails does. To stop a node takes two steps: in one, systemd would stop the
# service first, and the next connection start it again.
run() { in_box bash -euo pipefail -c "fails() { if \"\$@\"; then return 1; fi; }; halt() { systemctl stop 'pikod-*.socket'; systemctl stop pikod; }; $1"; }

# The service that requests are sent to is the admin listener of the node: it is there, and speaks HTTP.
#
# prove NAME SCRIPT: runs a script inside; the proof holds if it ends with 0.
prove() {
  if run "$2" >"$work/out" 2>&1; then
    echo "ok    $1"
  else
    failed=1
    echo "FAIL  $1"
    sed 's/^/      /' "$work/out" | tail -15
  fi
}

until_true find_leader || { cat "$work/console" && exit 1; }
until_true in_box systemctl is-system-running --wait || true
run 'apt-get update -q' >/dev/null 2>&1

prove 'apt-get installs by name, and neither enables nor starts' '
  apt-get install -y -q pikod piko-agent piko-forward
  test "$(systemctl is-enabled pikod.service)" = disabled
  fails systemctl is-active pikod.service && fails systemctl is-active pikod-proxy.socket'
prove 'users and modes are as they should be' '
  getent passwd pikod | grep -q nologin
  test "$(stat -c "%U:%G %a" /etc/piko/pikod.toml)" = "root:pikod 640"
  test "$(stat -c "%U:%G %a" /etc/piko)" = "root:root 755"
  test "$(stat -c "%U:%G %a" /etc/piko/piko-agent.toml)" = "root:piko-agent 640"'
prove 'systemctl enable --now starts the node with its sockets' '
  systemctl enable --now pikod
  for unit in pikod.service pikod-proxy.socket pikod-upstream.socket pikod-admin.socket; do systemctl is-active $unit; done
  fails systemctl is-active pikod-cluster.socket
  pikod healthcheck --ready
  journalctl -u pikod -o cat | grep ready'
prove 'requests reach a service through an installed agent' '
  mkdir /etc/piko/piko-agent.d
  cat >/etc/piko/piko-agent.d/listeners.toml <<END
[[listeners]]
endpoint = "web"
addr = "127.0.0.1:8002"
[[listeners]]
endpoint = "raw"
addr = "127.0.0.1:8002"
protocol = "tcp"
END
  systemctl enable --now piko-agent
  curl -sS --fail --retry 10 --retry-delay 1 --retry-all-errors -H "x-piko-endpoint: web" http://127.0.0.1:8000/health'
prove 'TCP reaches it through an installed forwarder, as an instance' '
  printf "[[forwards]]\nlisten = \"127.0.0.1:7000\"\nendpoint = \"raw\"\n" >/etc/piko/piko-forward-raw.toml
  systemctl enable --now piko-forward@raw
  curl -sS --fail --retry 10 --retry-delay 1 --retry-all-errors http://127.0.0.1:7000/health'
prove 'agents as instances follow their target' '
  printf "[[listeners]]\nendpoint = \"two\"\naddr = \"127.0.0.1:8002\"\n" >/etc/piko/piko-agent-two.toml
  systemctl enable --now piko-agent@two
  curl -sS --fail --retry 10 --retry-delay 1 --retry-all-errors -H "x-piko-endpoint: two" http://127.0.0.1:8000/health
  old=$(systemctl show -P MainPID piko-agent@two)
  systemctl restart piko-agents.target
  test "$(systemctl show -P MainPID piko-agent@two)" != "$old"'
prove 'a restart refuses no connection' '
  (for i in $(seq 40); do curl -sS --fail -m 20 -o /dev/null -H "x-piko-endpoint: web" http://127.0.0.1:8000/health || exit 1; sleep 0.05; done) &
  before=$(systemctl show -P ActiveEnterTimestampMonotonic pikod-proxy.socket)
  systemctl restart pikod
  wait $!
  test "$before" = "$(systemctl show -P ActiveEnterTimestampMonotonic pikod-proxy.socket)"'
prove 'the daemon can write nowhere in /etc, and has no capability' '
  pid=$(systemctl show -P MainPID pikod)
  grep -q "^CapBnd:.*0000000000000000$" /proc/$pid/status
  test "$(stat -c %U /proc/$pid)" = pikod
  fails nsenter -t $pid -m touch /etc/piko/x'
prove 'the first request starts a node that is stopped' '
  halt && systemctl start pikod-proxy.socket
  fails systemctl is-active pikod.service
  curl -sS -m 20 -o /dev/null http://127.0.0.1:8000/ && systemctl is-active pikod.service'
prove 'a listener in the settings and another socket is an error with both ways out' '
  mkdir -p /etc/piko/pikod.d && printf "[proxy]\nlisten = \":8080\"\n" >/etc/piko/pikod.d/x.toml
  halt
  fails systemctl start pikod
  journalctl --sync
  journalctl -u pikod -o cat | grep "stopped code=78"
  journalctl -u pikod -o cat | grep "systemctl edit pikod-proxy.socket"'
prove 'a masked socket lets the node open the address itself' '
  halt && systemctl mask pikod-proxy.socket
  systemctl reset-failed pikod "pikod-*.socket" || true
  systemctl start pikod
  curl -sS -m 20 -o /dev/null http://127.0.0.1:8080/ && fails curl -sS -m 5 -o /dev/null http://127.0.0.1:8000/
  rm /etc/piko/pikod.d/x.toml && systemctl unmask pikod-proxy.socket && halt'
prove 'a socket at port 80 needs no capability' '
  mkdir -p /etc/systemd/system/pikod-proxy.socket.d
  printf "[Socket]\nListenStream=\nListenStream=80\n" >/etc/systemd/system/pikod-proxy.socket.d/port.conf
  systemctl daemon-reload && systemctl start pikod
  curl -sS -m 20 -o /dev/null -w "%{http_code}" http://127.0.0.1/ | grep -E "^[45]"
  rm -r /etc/systemd/system/pikod-proxy.socket.d && systemctl daemon-reload
  halt && systemctl start pikod'
prove 'a reload takes new settings, and refuses bad ones while the old ones serve' '
    printf "[log]\nlevel = \"debug\"\n" >/etc/piko/pikod.d/log.toml && systemctl reload pikod
    printf "[log]\nlevel = \"loud\"\n" >/etc/piko/pikod.d/log.toml
    ! systemctl reload pikod
    systemctl is-active pikod && pikod healthcheck --ready
    rm /etc/piko/pikod.d/log.toml && systemctl reload pikod'
prove 'units are sound, and exposed no more than 1.1' '
  systemd-analyze verify --man=no /usr/lib/systemd/system/piko*
  for unit in pikod piko-agent piko-agent@x piko-forward piko-forward@x; do systemd-analyze security --threshold=11 $unit.service; done'
prove 'manual pages are found' '
  for page in pikod pikod.toml piko-agent piko-agent.toml piko-forward piko-forward.toml piko; do man -w $page; done'
prove 'a removal stops everything and keeps the settings' '
  apt-get remove -y -q pikod
  fails systemctl is-active pikod.service && fails systemctl is-active pikod-proxy.socket
  fails curl -sS -m 5 http://127.0.0.1:8000/
  test -e /etc/piko/pikod.toml'
prove 'what was enabled before a removal is enabled again' '
  apt-get install -y -q pikod && test "$(systemctl is-enabled pikod.service)" = enabled && systemctl start pikod'
prove 'a purge leaves what the administrator wrote, and no more' '
  mkdir -p /etc/piko/pikod.d && echo >/etc/piko/pikod.d/mine.toml
  apt-get purge -y -q pikod piko-agent piko-forward
  diff <(find /etc /usr /var/lib -xdev -name "*piko*" -not -path "/var/lib/dpkg/*" -not -path "/var/lib/apt/*" | sort) \
    <(printf "/etc/piko%s\n" "" /piko-agent-two.toml /piko-agent.d /piko-forward-raw.toml /pikod.d)'
exit "$failed"
