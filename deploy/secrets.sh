#!/usr/bin/env bash
# Writes the secrets of docker-compose.yml into deploy/secrets/, one file for each. Existing files stay. To change the
# passwords, remove the folder. First start: deploy/secrets.sh && docker compose up
#
#   deploy/secrets.sh [FOLDER [HOST:PORT of Redis]]
#
# Only you can open the folder. The files are readable by all users, because Docker mounts each one with its
# permissions into containers that run as other users.
#
# It refuses what an earlier wrong start left in the folder: docker compose creates a directory, as root, for each file that
# is missing, and a run of this script that failed may have left an empty file.
set -euo pipefail
unset CDPATH # where cd would look first
folder=${1:-$(dirname "$0")/secrets}
redis=${2:-redis:6379}
external=(slack_url pagerduty_key smtp_password)
started_before='the containers were started before this script ran'

problems() { # prints a line for each
  if [ ! -O "$folder" ] && [ "$EUID" != 0 ]; then
    echo "$folder belongs to $(stat -c %U "$folder"): $started_before"
    return
  fi
  for file in "$folder"/*; do
    if [ -d "$file" ]; then
      echo "$file is a directory: $started_before"
    elif [ -e "$file" ] && [ ! -s "$file" ] && [[ " ${external[*]} " != *" ${file##*/} "* ]]; then
      echo "$file is empty"
    fi
  done
  for name in redis rabbitmq postgres flower; do
    [ -e "$folder/${name}_password" ] || for file in "$folder/$name"[._]*; do
      [ ! -f "$file" ] || echo "$file contains a password that is not in ${name}_password, which is missing"
    done
  done
}

mkdir -p "$folder"
rm -f "$folder"/*.new || true # of an interrupted run
problems=$(problems)
if [ -n "$problems" ]; then
  sed 's/^/secrets.sh: /' <<<"$problems" >&2
  echo "Nothing was changed. Run docker compose down, remove these, and run this script again." >&2
  exit 1
fi
chmod 700 "$folder"
cd "$folder"
umask 022

put() { # NAME: writes standard input to the file, unless it exists
  cat >"$1.new"
  [ -e "$1" ] || mv "$1.new" "$1"
  rm -f "$1.new"
}
random() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; } # needs no escaping in a URL

for name in redis rabbitmq postgres grafana flower influxdb; do
  random | put "${name}_password"
done
random | put influxdb_token
password() { printf %s "$(<"$1_password")"; }

# The same passwords in the file formats of the programs.
put redis.conf <<<"requirepass $(password redis)"
put redis_url <<<"redis://:$(password redis)@$redis/0"
put redis_exporter.json <<<"{\"redis://$redis\": \"$(password redis)\"}"
put rabbitmq.conf <<<"default_user = celery
default_pass = $(password rabbitmq)"
put rabbitmq_url <<<"amqp://celery:$(password rabbitmq)@rabbitmq:5672//"
put postgres_url <<<"db+postgresql+psycopg://celery:$(password postgres)@postgres:5432/celery"
put flower_auth <<<"admin:$(password flower)"

# Secrets of other services. Fill them in, without a line break.
for name in "${external[@]}"; do
  put "$name" </dev/null
done
