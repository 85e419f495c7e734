#!/usr/bin/env bash
# Installs the missing servers and tools of the tests if it runs as root on Debian. Otherwise it prints their names.
# With arguments, it installs only these commands.
# Debian starts a service when it installs it. The policy file prevents that, so that no server keeps running.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin:/usr/lib/rabbitmq/bin"

declare -A package=(
  [redis-server]=redis-server
  [rabbitmq-server]=rabbitmq-server
  [prometheus]=prometheus
  [promtool]=prometheus
  [prometheus-alertmanager]=prometheus-alertmanager
  [amtool]=prometheus-alertmanager
  [prometheus-node-exporter]=prometheus-node-exporter
  [prometheus-redis-exporter]=prometheus-redis-exporter
  [influxd]=influxdb
  [victoria-metrics]=victoria-metrics
  [docker-compose]=docker-compose
  [podman]=podman
  [runc]=runc
  [mmdebstrap]=mmdebstrap
  [iptables]=iptables
  [faketime]=faketime
  [jsonnet]=jsonnet
  [node]=nodejs
  [npm]=npm
  [chromium]=chromium
  [curl]=curl
  [git]=git
  [jq]=jq
  [logrotate]=logrotate
  [systemd-analyze]=systemd
  [strace]=strace
)
missing=()
for command in "${@:-${!package[@]}}"; do
  command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
# The networks of podman, and the names in them. The programs are not in the PATH.
for program in netavark aardvark-dns; do
  [ -e "/usr/lib/podman/$program" ] || missing+=("$program")
done
# A library to preload, without a command: a resolver whose host names a test can change.
[ $# -gt 0 ] || compgen -G '/usr/lib/*/libnss_wrapper.so' >/dev/null || missing+=(libnss-wrapper)
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "The tests need ${missing[*]}. On Debian: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
