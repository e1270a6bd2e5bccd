# shellcheck shell=bash disable=SC2016
# Part of packages.sh: what clients notice when the node is replaced under load. 20 clients keep their connections and 20
# open one for each request; none may fail, and none may wait longer than half a second.
prove 'T4 handing over under load fails no request and delays none' '
  eventually web
  sockets=$(systemctl show -P ActiveEnterTimestampMonotonic pikod-proxy.socket)
  load -requests 20000
  curl -sS --fail -m 30 -o /run/slow -H "x-piko-endpoint: web" "http://127.0.0.1:8000/slow?s=8" & slow=$!
  for i in 1 2 3; do sleep 1.5; hand_over pikod; done
  rc=0; enough || rc=$?; echo "note: $(head -1 /run/load)"
  wait $slow && grep -q last /run/slow && echo "note: a request of 8 s went on across them"
  systemctl reload pikod
  test "$sockets" = "$(systemctl show -P ActiveEnterTimestampMonotonic pikod-proxy.socket)" && exit $rc'
prove 'T4 apt-get upgrade and a downgrade under load fail no request and delay none' '
  load -requests 20000
  echo "deb [trusted=yes] file:/repo-new ./" >/etc/apt/sources.list
  apt-get update -q && apt-get upgrade -y -q
  test "$(dpkg-query -W -f "\${Version}" pikod)" = "$version"
  fails said "not restarted"
  old=$(main_pid pikod) && apt-get install -y -q --allow-downgrades pikod=0.0.9-1 && test "$(main_pid pikod)" != "$old"
  rc=0; enough || rc=$?; echo "note: $(head -1 /run/load)"
  pikod --version | grep -F 0.0.9 && /proc/$(main_pid pikod)/exe --version | grep -F 0.0.9 && exit $rc'
prove 'T4 systemctl restart under load fails no request and delays none' '
  eventually web
  load -requests 15000
  sockets=$(systemctl show -P ActiveEnterTimestampMonotonic pikod-proxy.socket)
  for i in 1 2; do sleep 1.5; systemctl restart pikod; done
  rc=0; enough || rc=$?; echo "note: $(head -1 /run/load)"
  test "$sockets" = "$(systemctl show -P ActiveEnterTimestampMonotonic pikod-proxy.socket)" && exit $rc'
prove 'T4 systemctl restart behind a handover fails no request and delays none' '
  eventually web
  load -requests 15000
  hand_over pikod; sleep 1.5; systemctl restart pikod; sleep 1
  rc=0; enough || rc=$?; echo "note: $(head -1 /run/load)"
  fails said "with signal SIGKILL" -15s && exit $rc'
prove 'T4 systemctl restart waits for the process before, which still answers' '
  eventually web
  for unit in pikod piko-agent; do
    curl -sS --fail -m 30 -o /run/slow -H "x-piko-endpoint: web" "http://127.0.0.1:8000/slow?s=4" & slow=$!
    sleep 1; hand_over $unit; sleep 1; systemctl restart $unit
    wait $slow && grep -q last /run/slow || exit 1
    eventually web
  done'
prove 'T5 an agent and a forward that are handed over fail no request' '
  eventually web
  load -requests 8000 -longest 2s
  hand_over piko-agent; hand_over piko-forward@raw; sleep 1
  rc=0; enough || rc=$?; echo "note: $(head -1 /run/load)"
  eventually curl -sS --fail -m 5 http://127.0.0.1:7000/ && exit $rc'
prove 'T5 agents are back within two seconds after a restart' '
  systemctl restart pikod; began=$(date +%s%N)
  eventually web && curl -sS --fail -m 5 http://127.0.0.1:7000/
  took=$((($(date +%s%N) - began) / 1000000)); echo "note: after $took ms"; test $took -lt 2000'
prove 'T19 reinstalling works, and needrestart finds nothing to do' '
  apt-get install -y -q pikod && apt-get install -y -q --reinstall pikod piko-agent piko-forward
  eventually web && sleep 1
  needrestart -b -r l >/run/restarts 2>&1; fails grep -i piko /run/restarts'
