# shellcheck shell=bash disable=SC2016
# Part of packages.sh: settings that change, good ones and bad ones.
prove 'T6 each way to edit the settings is applied at once, once, and without a restart' '
  pid=$(main_pid pikod)
  # edit COMMAND...: what it does to the settings must be in use within a second, and be loaded once.
  edit() {
    local since want=$1; shift
    sleep 1.1; since=$(date "+%F %T"); "$@"
    for i in $(seq 20); do sleep 0.1; if code "$want.test" | grep -q 200; then break; fi; done
    test "$i" -le 10 || { echo "$want took $i tenths of a second"; return 1; }
    sleep 0.5; journalctl --sync
    test "$(journalctl -u pikod -o cat --since "$since" | grep -c "settings reloaded")" = 1
  }
  code() { curl -sS -m 5 -o /dev/null -w "%{http_code}" -H "Host: web.$1" http://127.0.0.1:8000/; }
  d=/etc/piko/pikod.d; mkdir -p $d
  append() { printf "[proxy]\ndomains = [\"one.test\"]\n" >>/etc/piko/pikod.toml; }
  rename() { sed "s/one.test/two.test/" /etc/piko/pikod.toml >/etc/piko/new && chgrp pikod /etc/piko/new && chmod 640 /etc/piko/new && mv /etc/piko/new /etc/piko/pikod.toml; }
  drop() { printf "[proxy]\ndomains = [\"three.test\"]\n" >$d/a.toml; }
  link() { printf "[proxy]\ndomains = [\"four.test\"]\n" >/run/four.toml; ln -s /run/four.toml $d/b.toml; }
  swap() { printf "[proxy]\ndomains = [\"five.test\"]\n" >/run/five.toml; ln -s /run/five.toml /run/link; mv -T /run/link $d/b.toml; }
  edit one append; edit two rename; edit three drop; edit four link; edit five swap
  rm $d/a.toml $d/b.toml; sed -i "/^\[proxy\]/,\$d" /etc/piko/pikod.toml; systemctl reload pikod
  test "$(main_pid pikod)" = "$pid"; eventually web'
prove 'T7 bad settings change nothing, whichever way they come' '
  bad=/etc/piko/pikod.d/log.toml; pid=$(main_pid pikod)
  printf "[log]\nlevel = \"debug\"\n" >$bad && systemctl reload pikod
  printf "[log]\nlevel = \"loud\"\n" >$bad
  eventually said "$bad:2"                                          # by the event
  systemctl show -P StatusText pikod | grep -F "$bad:2"
  since=$(date "+%F %T"); sleep 1; kill -HUP "$pid"; eventually said "$bad:2" "$since" # by the signal
  rc=0; systemctl reload pikod || rc=$?; test $rc = 1                # by systemd
  web && test "$(main_pid pikod)" = "$pid"
  apt-get install -y -q --reinstall pikod 2>&1 | tee /run/apt; grep "not restarted, since this version refuses" /run/apt
  web && test "$(main_pid pikod)" = "$pid"
  rm $bad && systemctl reload pikod'
prove 'T8 systemctl reload returns when the new settings are in use' '
  for i in 1 2 3 4 5 6 7 8; do
    printf "[proxy]\ndomains = [\"d$i.test\"]\n" >/etc/piko/pikod.d/d.toml; systemctl reload pikod
    curl -sS -m 5 -o /dev/null -w "%{http_code}" -H "Host: web.d$i.test" http://127.0.0.1:8000/ | grep 200
  done
  busctl monitor org.freedesktop.systemd1 >/run/states 2>&1 & monitor=$!; sleep 0.5
  rm /etc/piko/pikod.d/d.toml; systemctl reload pikod; sleep 0.5; kill $monitor
  grep -q "\"reloading\"" /run/states'
prove 'T12 a listener in the settings and another socket is an error with both ways out' '
  mkdir -p /etc/piko/pikod.d && printf "[proxy]\nlisten = \":8080\"\n" >/etc/piko/pikod.d/x.toml
  halt
  fails systemctl start pikod
  said "stopped code=78"
  said "systemctl edit pikod-proxy.socket" && said "systemctl mask --now pikod-proxy.socket"'
prove 'T12 a masked socket lets the node open the address itself' '
  halt && systemctl mask pikod-proxy.socket
  systemctl reset-failed pikod "pikod-*.socket" || true
  systemctl start pikod
  curl -sS -m 20 -o /dev/null http://127.0.0.1:8080/ && fails curl -sS -m 5 -o /dev/null http://127.0.0.1:8000/
  hand_over pikod && curl -sS -m 20 -o /dev/null http://127.0.0.1:8080/
  rm /etc/piko/pikod.d/x.toml && systemctl unmask pikod-proxy.socket && halt'
prove 'T12 a socket at port 80 needs no capability' '
  mkdir -p /etc/systemd/system/pikod-proxy.socket.d
  printf "[Socket]\nListenStream=\nListenStream=80\n" >/etc/systemd/system/pikod-proxy.socket.d/port.conf
  systemctl daemon-reload && systemctl start pikod
  curl -sS -m 20 -o /dev/null -w "%{http_code}" http://127.0.0.1/ | grep -E "^[45]"
  rm -r /etc/systemd/system/pikod-proxy.socket.d && systemctl daemon-reload
  halt && systemctl start pikod; eventually web'
prove 'T13 a credential is used when it is there, and a file with a token is read again' '
  mkdir -p /etc/credstore /etc/systemd/system/piko-agent.service.d
  printf "[connect]\ntoken_file = \"piko-agent.token\"\n" >/etc/piko/piko-agent.d/token.toml
  systemctl stop piko-agent; fails systemctl start piko-agent # the settings name a token that is nowhere
  printf "first" >/etc/credstore/piko-agent.token && systemctl reset-failed piko-agent && systemctl start piko-agent && eventually web
  printf "[Service]\nLoadCredential=x:/nowhere\n" >/etc/systemd/system/piko-agent.service.d/x.conf && systemctl daemon-reload
  systemctl stop piko-agent; fails systemctl start piko-agent
  systemctl show -P ExecMainStatus piko-agent | grep -x 243
  rm -r /etc/systemd/system/piko-agent.service.d /etc/piko/piko-agent.d/token.toml && systemctl daemon-reload
  printf "one" >/etc/piko/token && chgrp piko-agent /etc/piko/token && chmod 640 /etc/piko/token
  printf "[connect]\ntoken_file = \"/etc/piko/token\"\n" >/etc/piko/piko-agent.d/token.toml
  systemctl reset-failed piko-agent || true
  systemctl start piko-agent && eventually web; pid=$(main_pid piko-agent); printf "two" >/etc/piko/token
  again() { journalctl --sync; journalctl -u piko-agent -o cat --since -10s | grep "settings reloaded"; }
  eventually again; test "$(main_pid piko-agent)" = "$pid"
  rm /etc/piko/piko-agent.d/token.toml /etc/piko/token && eventually web'
