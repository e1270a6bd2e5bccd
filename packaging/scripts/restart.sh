# For the other scripts: put the version that was just unpacked in the place of what runs.
units_sum() { cat /usr/lib/systemd/system/@NAME@.service /usr/lib/systemd/system/@NAME@@.service 2>/dev/null | sha256sum; }

# hand_over UNIT: the process starts its successor and serves until that does, so nobody waits. What systemd does for a
# service, such as its limits, stays as it was, so it is no way if the units differ.
hand_over() {
  old=$(systemctl show -P MainPID "$1") && systemctl kill --kill-who=main -s USR2 "$1" || return 1
  tries=0
  while [ "$tries" -lt 100 ]; do
    new=$(systemctl show -P MainPID "$1") || return 1
    if [ "$new" != "$old" ]; then
      [ "$new" != 0 ] && systemctl --quiet is-active "$1"
      return
    fi
    sleep 0.2
    tries=$((tries + 1))
  done
  return 1
}

# Sockets are left alone: they hold connections meanwhile. Where this version refuses the settings, the old process goes on.
restart_running() {
  same=false
  if [ -s /run/@NAME@.units ]; then
    if [ "$(units_sum)" = "$(cat /run/@NAME@.units)" ]; then same=true; fi
    : >/run/@NAME@.units
  fi
  for unit in $(systemctl list-units --plain --no-legend --state=active '@NAME@.service' '@NAME@@*.service' | cut -d' ' -f1); do
    config="/etc/piko/$(echo "${unit%.service}" | tr @ -).toml"
    # The settings may refer to the environment and the credentials of the service.
    if systemd-run --quiet --wait --pipe -p EnvironmentFile=-/etc/default/@NAME@ -p EnvironmentFile=-/etc/sysconfig/@NAME@ \
      -p "Environment=CREDENTIALS_DIRECTORY=/run/credentials/$unit" \
      /usr/bin/@NAME@ --config "$config" --check-config </dev/null >/dev/null; then
      if [ "$same" = false ] || ! hand_over "$unit"; then
        "$@" "$unit" >/dev/null || :
      fi
    else
      echo "$unit: not restarted, since this version refuses $config" >&2
    fi
  done
}
