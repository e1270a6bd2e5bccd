# shellcheck shell=bash disable=SC2016
# Part of packages.sh: the same with the rpms, after the debs are gone. Debian's rpm knows no packages of Debian, hence
# --nodeps.
prove 'R1 rpm installs, and neither enables nor starts' '
  rm -rf /etc/piko; mkdir -p /var/lib/rpm
  rpm -U --nodeps /store/piko*-0.0.9-1.x86_64.rpm
  test "$(systemctl is-enabled pikod.service)" = disabled && fails systemctl is-active pikod
  test "$(stat -c "%U:%G %a" /etc/piko/pikod.toml)" = "root:pikod 640"
  rpm -V --nodeps pikod piko-agent piko-forward'
prove 'R2 requests reach a service through an installed agent' '
  systemctl is-active service || systemd-run --quiet --unit=service box serve 127.0.0.1:9000
  printf "[[listeners]]\nendpoint = \"web\"\naddr = \"127.0.0.1:9000\"\n" >/etc/piko/piko-agent.d/listeners.toml
  systemctl enable --now pikod piko-agent && eventually web'
prove 'R3 rpm -U under load fails no request and delays none' '
  load -requests 10000
  old=$(main_pid pikod); rpm -U --nodeps $(ls /store/piko*.x86_64.rpm | grep -v 0.0.9-1)
  test "$(main_pid pikod)" != "$old"
  rc=0; enough || rc=$?; echo "note: $(head -1 /run/load)"
  fails grep -F 0.0.9 <(/proc/$(main_pid pikod)/exe --version); rpm -V --nodeps pikod piko-agent piko-forward; exit $rc'
prove 'R4 an upgrade whose program refuses the settings leaves the old process alone' '
  printf "[log]\nlevel = \"loud\"\n" >/etc/piko/pikod.d/log.toml; pid=$(main_pid pikod)
  rpm -U --nodeps --oldpackage /store/pikod-0.0.9-1.x86_64.rpm 2>&1 | tee /run/rpm
  grep "not restarted" /run/rpm && test "$(main_pid pikod)" = "$pid" && web
  rm /etc/piko/pikod.d/log.toml'
prove 'R5 settings that were edited survive upgrades' '
  echo "# mine" >>/etc/piko/pikod.toml
  rpm -U --nodeps $(ls /store/pikod-*.x86_64.rpm | grep -v 0.0.9-1)
  grep "# mine" /etc/piko/pikod.toml && test "$(stat -c "%U:%G %a" /etc/piko/pikod.toml)" = "root:pikod 640" && eventually web'
prove 'R6 rpm -e stops everything, and keeps what was edited' '
  rpm -e pikod piko-agent piko-forward
  fails systemctl is-active pikod && fails systemctl is-active pikod-proxy.socket && fails systemctl is-active piko-agent
  fails curl -sS -m 5 http://127.0.0.1:8000/
  test -e /etc/piko/pikod.toml.rpmsave && fails test -e /etc/piko/pikod.toml
  test -z "$(find /etc/systemd /usr -xdev -name "*pikod*")"'
