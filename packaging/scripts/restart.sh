# Restarts what runs. Sockets are left alone: they hold connections meanwhile. Where this version refuses the settings,
# the old process goes on.
restart_running() {
  for unit in $(systemctl list-units --plain --no-legend --state=active '@NAME@.service' '@NAME@@*.service' | cut -d' ' -f1); do
    config="/etc/piko/$(echo "${unit%.service}" | tr @ -).toml"
    # The settings may refer to the environment and the credentials of the service.
    if systemd-run --quiet --wait --pipe -p EnvironmentFile=-/etc/default/@NAME@ -p EnvironmentFile=-/etc/sysconfig/@NAME@ \
      -p "Environment=CREDENTIALS_DIRECTORY=/run/credentials/$unit" \
      /usr/bin/@NAME@ --config "$config" --check-config </dev/null >/dev/null; then
      "$@" "$unit" >/dev/null || :
    else
      echo "$unit: not restarted, since this version refuses $config" >&2
    fi
  done
}
