#!/usr/bin/env bash
# What docker-compose.yml needs to know and nobody else may: one file each in deploy/secrets/. A file that is
# there stays; to change a password, remove its folder. First run: deploy/secrets.sh && docker compose up
#
#   deploy/secrets.sh [FOLDER [HOST:PORT of Redis]]
#
# The folder is for you alone. Its files can be read by everybody, since the engine mounts each by itself, as it
# is on the disk, into containers that run as users of their own.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}
redis=${2:-redis:6379}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
umask 022

put() { # NAME: what comes in, unless there is something already
  cat >"$1.new"
  [ -e "$1" ] || mv "$1.new" "$1"
  rm -f "$1.new"
}
random() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; } # fits into a URL as it is

for name in redis rabbitmq postgres grafana flower; do
  random | put "${name}_password"
done
password() { printf %s "$(<"$1_password")"; }

# The same in the forms in which programs take them from a file.
put redis.conf <<<"requirepass $(password redis)"
put redis_url <<<"redis://:$(password redis)@$redis/0"
put redis_exporter.json <<<"{\"redis://$redis\": \"$(password redis)\"}"
put rabbitmq.conf <<<"default_user = celery
default_pass = $(password rabbitmq)"
put rabbitmq_url <<<"amqp://celery:$(password rabbitmq)@rabbitmq:5672//"
put postgres_url <<<"db+postgresql+psycopg://celery:$(password postgres)@postgres:5432/celery"
put flower_auth <<<"admin:$(password flower)"

# These come from others: fill them in, without a line break.
for name in slack_url pagerduty_key smtp_password; do
  put "$name" </dev/null
done
