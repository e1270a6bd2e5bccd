# shellcheck shell=bash disable=SC2016
# Part of packages.sh: the debs as they come, and what runs then.
prove 'T1 apt-get installs by name, and neither enables nor starts' '
  apt-get install -y -q pikod piko-agent piko-forward
  test "$(systemctl is-enabled pikod.service)" = disabled
  fails systemctl is-active pikod.service && fails systemctl is-active pikod-proxy.socket'
prove 'T3 users and modes are as they should be' '
  getent passwd pikod | grep -q nologin
  test "$(stat -c "%U:%G %a" /etc/piko/pikod.toml)" = "root:pikod 640"
  test "$(stat -c "%U:%G %a" /etc/piko)" = "root:root 755"
  test "$(stat -c "%U:%G %a" /etc/piko/piko-agent.toml)" = "root:piko-agent 640"'
prove 'T1 systemctl enable --now starts the node with its sockets' '
  systemctl enable --now pikod
  for unit in pikod.service pikod-proxy.socket pikod-upstream.socket pikod-admin.socket; do systemctl is-active $unit; done
  fails systemctl is-active pikod-cluster.socket
  pikod healthcheck --ready
  said ready'
prove 'T1 requests reach a service through an installed agent' '
  systemd-run --quiet --unit=service box serve 127.0.0.1:9000
  mkdir -p /etc/piko/piko-agent.d
  cat >/etc/piko/piko-agent.d/listeners.toml <<END
[[listeners]]
endpoint = "web"
addr = "127.0.0.1:9000"
[[listeners]]
endpoint = "raw"
addr = "127.0.0.1:9000"
protocol = "tcp"
END
  systemctl enable --now piko-agent
  eventually web'
prove 'T1 TCP reaches it through an installed forwarder, as an instance' '
  printf "[[forwards]]\nlisten = \"127.0.0.1:7000\"\nendpoint = \"raw\"\n" >/etc/piko/piko-forward-raw.toml
  systemctl enable --now piko-forward@raw
  eventually curl -sS --fail -m 5 http://127.0.0.1:7000/'
prove 'T1 agents as instances follow their target' '
  printf "[[listeners]]\nendpoint = \"two\"\naddr = \"127.0.0.1:9000\"\n" >/etc/piko/piko-agent-two.toml
  systemctl enable --now piko-agent@two
  eventually curl -sS --fail -H "x-piko-endpoint: two" http://127.0.0.1:8000/
  old=$(main_pid piko-agent@two)
  systemctl restart piko-agents.target
  eventually moved piko-agent@two "$old"'
prove 'T1 piko-agent diagnose finds nothing wrong' 'piko-agent diagnose'
prove 'T3 the daemon can write nowhere in /etc, and has no capability' '
  pid=$(main_pid pikod)
  grep -q "^CapBnd:.*0000000000000000$" /proc/$pid/status
  test "$(stat -c %U /proc/$pid)" = pikod
  fails nsenter -t $pid -m touch /etc/piko/x'
prove 'T3 the threads of the node do not interrupt each other' '
  policies=$(cut -d" " -f41 /proc/$(main_pid pikod)/task/*/stat | sort -u) || true # a thread may have ended
  test "$policies" = 3 # SCHED_BATCH'
prove 'T2 the first request starts a node that is stopped' '
  halt && systemctl start pikod-proxy.socket
  fails systemctl is-active pikod.service
  curl -sS -m 20 -o /dev/null http://127.0.0.1:8000/ && systemctl is-active pikod.service
  systemctl start pikod-upstream.socket pikod-admin.socket; systemctl restart pikod; eventually web'
prove 'T15 units are sound, and exposed no more than 1.1' '
  systemd-analyze verify --man=yes /usr/lib/systemd/system/piko*
  for unit in pikod piko-agent piko-agent@x piko-forward piko-forward@x; do
    echo "note: $(systemd-analyze security --threshold=11 --no-pager $unit.service | tail -1 | sed "s/[^ -~]//g")"
  done'
prove 'T16 manual pages are found' '
  for page in pikod pikod.toml piko-agent piko-agent.toml piko-forward piko-forward.toml piko; do man -w $page; done
  mandb -q; for page in pikod piko-agent piko-forward piko; do whatis $page; done'
