# shellcheck shell=bash disable=SC2016
# Part of packages.sh: a process that hangs, and one that can't start while clients knock.
prove 'T14 systemd replaces a node that hangs' '
  mkdir -p /etc/systemd/system/pikod.service.d
  printf "[Service]\nWatchdogSec=2s\n" >/etc/systemd/system/pikod.service.d/watchdog.conf
  systemctl daemon-reload && systemctl restart pikod && eventually web
  before=$(systemctl show -P NRestarts pikod); pid=$(main_pid pikod)
  kill -STOP "$pid"
  for i in $(seq 100); do sleep 0.2; if moved pikod "$pid"; then break; fi; done
  eventually web
  test "$(systemctl show -P NRestarts pikod)" = $((before + 1))
  rm -r /etc/systemd/system/pikod.service.d && systemctl daemon-reload && systemctl restart pikod; eventually web'
prove 'T9 bad settings and a storm of connections leave nothing behind that a restart does not heal' '
  printf "[log]\nlevel = \"loud\"\n" >/etc/piko/pikod.d/log.toml
  systemctl restart pikod || true
  for i in $(seq 60); do curl -sS -m 0.3 -o /dev/null http://127.0.0.1:8000/ & done; wait || true
  fails systemctl is-active pikod
  rm /etc/piko/pikod.d/log.toml; sleep 11
  systemctl restart pikod
  for unit in pikod.service pikod-proxy.socket pikod-upstream.socket pikod-admin.socket; do systemctl is-active $unit; done
  eventually web'
