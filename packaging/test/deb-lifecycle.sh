# shellcheck shell=bash disable=SC2016,SC2154
prove 'T11 settings that nobody touched are replaced in silence, and keep their mode' '
  apt-get purge -y -q pikod && rm -rf /etc/piko/pikod.d && apt-get install -y -q /store/pikod_0.0.8-1_amd64.deb
  grep -q "As it once was" /etc/piko/pikod.toml && chmod 600 /etc/piko/pikod.toml
  apt-get install -y -q pikod </dev/null && fails grep "As it once was" /etc/piko/pikod.toml
  test "$(stat -c "%U:%G %a" /etc/piko/pikod.toml)" = "root:pikod 600"
  fails compgen -G "/etc/piko/pikod.toml.*"'
edited='
  apt-get purge -y -q pikod && apt-get install -y -q /store/pikod_0.0.8-1_amd64.deb && systemctl start pikod
  echo "# mine" >>/etc/piko/pikod.toml; pid=$(main_pid pikod)'
prove 'T11 settings that were edited stay, with the new ones beside them' "$edited"'
  apt-get install -y -q -o Dpkg::Options::=--force-confold pikod </dev/null
  grep -q "# mine" /etc/piko/pikod.toml && test -e /etc/piko/pikod.toml.dpkg-dist
  test "$(stat -c "%U:%G %a" /etc/piko/pikod.toml)" = "root:pikod 640" && systemctl is-active pikod && halt'
prove 'T11 settings that were edited go, if asked for, with the old ones beside them' "$edited"'
  apt-get install -y -q -o Dpkg::Options::=--force-confnew pikod </dev/null
  fails grep "# mine" /etc/piko/pikod.toml && grep -q "# mine" /etc/piko/pikod.toml.dpkg-old
  test "$(stat -c "%U:%G %a" /etc/piko/pikod.toml)" = "root:pikod 640" && systemctl is-active pikod && halt'
prove 'T11 without a terminal to ask at, the upgrade stops and the old process serves' "$edited"'
  fails apt-get install -y -q pikod </dev/null
  test "$(main_pid pikod)" = "$pid" && pikod healthcheck
  dpkg --force-confold --configure -a && pikod healthcheck; test "$(dpkg-query -W -f "\${db:Status-Status}" pikod)" = installed
  rm -f /etc/piko/pikod.toml.* && systemctl enable pikod'
prove 'T10 a removal stops everything and keeps the settings' '
  apt-get remove -y -q pikod
  fails systemctl is-active pikod.service && fails systemctl is-active pikod-proxy.socket
  fails curl -sS -m 5 http://127.0.0.1:8000/
  test -e /etc/piko/pikod.toml && getent passwd pikod'
prove 'T10 what was enabled before a removal is enabled again' '
  apt-get install -y -q pikod && test "$(systemctl is-enabled pikod.service)" = enabled && systemctl start pikod'
prove 'T10 a purge leaves what the administrator wrote, and no more' '
  mkdir -p /etc/piko/pikod.d && echo >/etc/piko/pikod.d/mine.toml
  apt-get purge -y -q pikod piko-agent piko-forward
  diff <(find /etc /usr /var/lib -xdev -name "*piko*" -not -path "/var/lib/dpkg/*" -not -path "/var/lib/apt/*" | sort) \
    <(printf "/etc/%s\n" credstore/piko-agent.token piko piko/piko-agent-two.toml piko/piko-agent.d piko/piko-forward-raw.toml piko/pikod.d)'
prove 'T20 where a policy forbids to start services, none starts' '
  printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
  apt-get install -y -q pikod piko-agent piko-forward && apt-get install -y -q --reinstall pikod
  fails systemctl is-active pikod; apt-get purge -y -q pikod piko-agent piko-forward; rm /usr/sbin/policy-rc.d'

# Not in the box: a system that does not run, as when an image is made.
if [ -z "${ONLY:-}" ] || [[ T20 =~ $ONLY ]]; then
  proofs=$((proofs + 1))
  layer "$work/still"
  cp "$root"/store/*.deb "$work/still/"
  if { chroot "$work/still" sh -ec 'rm -f pikod_0.0.8*; dpkg -i ./*.deb && dpkg -r pikod && dpkg -i pikod_*.deb && dpkg -P pikod piko-agent piko-forward
    ! find /etc /usr /var/lib -xdev -name "*piko*" -not -path "/var/lib/dpkg/*" | grep .'; } >"$work/out" 2>&1; then
    echo 'ok    T20 install, remove and purge in a chroot without systemd'
  else
    failed=$((failed + 1))
    echo 'FAIL  T20 install, remove and purge in a chroot without systemd'
    tail -15 "$work/out"
  fi
fi
