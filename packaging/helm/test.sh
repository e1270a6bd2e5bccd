#!/usr/bin/env bash
# Checks the chart: helm's own linter, and what it renders against the types of Kubernetes and the settings of our daemons.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd packaging/helm/check && go build -o "$work/check" .)
go build -o "$work/" ./pikod ./piko-agent
chart=packaging/helm/piko

bin/helm lint --strict "$chart" --set pikod.consul=consul:8500
# One node alone; a cluster with all that there is; the same for an older Kubernetes.
cat >"$work/all.yaml" <<'END'
pikod:
  consul: consul.consul:8500
  secrets: {proxy: certificate, token: keys}
  settings: |
    [proxy]
    domains = ["piko.example.com"]
    [upstream]
    allow_unauthenticated = true
  proxy: {type: LoadBalancer, port: 443, annotations: {example.com/a: b}}
  nodeSelector: {disk: ssd}
  tolerations: [{key: a, operator: Exists}]
  priorityClassName: high
  podAnnotations: {example.com/a: b}
networkPolicy:
  scrapers: [{namespaceSelector: {matchLabels: {name: monitoring}}}]
agents:
  web:
    replicas: 2
    token: web-token
    settings: |
      [[listeners]]
      endpoint = "web"
      addr = "web.default.svc:80"
  db:
    settings: |
      [[listeners]]
      endpoint = "db"
      protocol = "tcp"
      addr = "db:5432"
END
kinds=StatefulSet,Service,ConfigMap,PodDisruptionBudget,NetworkPolicy
bin/helm template piko "$chart" --kube-version 1.33.0 --set pikod.replicas=1 | "$work/check" -want "$kinds"
bin/helm template piko "$chart" -f "$work/all.yaml" --kube-version 1.33.0 >"$work/all"
"$work/check" -want "$kinds,Deployment,Secret" <"$work/all"
bin/helm template piko "$chart" -f "$work/all.yaml" --kube-version 1.25.0 | "$work/check" -want "$kinds,Deployment,Secret"
if bin/helm template piko "$chart" --kube-version 1.33.0 >/dev/null 2>"$work/err"; then echo "three replicas without Consul" >&2 && exit 1; fi
grep -q 'find each other through Consul only' "$work/err"

# The daemons take the settings as they are mounted.
for program in pikod piko-agent; do
  mkdir -p "$work/etc/$program.d"
  awk -v key="  $program.toml: |" '$0 == key { on = 1; next } on && /^  [a-z]/ { exit } on { sub(/^    /, ""); print }' "$work/all" |
    sed "s|/secrets/cluster/secret|$work/secret|; s|/secrets/token/token|$work/secret|" >"$work/etc/$program.toml"
  awk -v key="  $program.toml: |" '$0 == key { mine = 1 } mine && /^  settings.toml: \|/ { on = 1; next } on && /^(---|[a-z#])/ { exit }
    on { sub(/^    /, ""); print }' "$work/all" >"$work/etc/$program.d/settings.toml"
  test -s "$work/etc/$program.toml" && test -s "$work/etc/$program.d/settings.toml"
  (umask 077 && echo 'a secret that is long enough to be one' >"$work/secret")
  POD_NAME=piko-0 POD_IP=10.0.0.1 "$work/$program" --config "$work/etc/$program.toml" --check-config
done
echo "the chart is sound"
