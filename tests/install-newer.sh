#!/usr/bin/env bash
# install-newer.sh NAME PACKAGE...: downloads a newer server or Python than that of Debian 12 from Debian's testing suite,
# with its dependencies, into .cache/NAME/usr. The tests mount this as /usr for this program only (Newer in
# tests/harness/servers.py, tests/compatibility/interpreters.py). Installed packages and apt's lists do not change.
set -euo pipefail
cd "$(dirname "$0")/.."
home=.cache/$1 suite=forky
name=$1
shift
[ -e "$home/usr" ] && exit 0

cannot() {  # an error in CI; elsewhere the tests of this server are skipped
  echo "No $name for the tests: $1" >&2
  [ -z "${CI:-}" ]
  exit
}
codename=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}")
keys=/usr/share/keyrings/debian-archive-keyring.gpg
command -v apt-get >/dev/null && [ -e $keys ] || cannot "this is not Debian (or debian-archive-keyring is missing)"
[ -L /lib ] || cannot "/usr is not merged here"
unshare --mount true 2>/dev/null || cannot "unshare --mount is denied; it needs root"
mirror=$(apt-get update --print-uris | sed -n "s#^'\(.*\)/dists/$codename/InRelease'.*#\1#p" | head -n 1)
[ -n "$mirror" ] || cannot "apt knows no mirror of Debian $codename"

# Build it in a temporary folder, and move it when it is complete.
rm -rf "$home"
mkdir -p "$home"
work=$(mktemp -d "$PWD/$home/making.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial
touch "$work/status"  # nothing is installed there yet
echo "deb [signed-by=$keys] $mirror $suite main" >"$work/sources.list"
cat >"$work/apt.conf" <<EOF
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::State::extended_states "$work/extended_states";
Dir::Cache "$work";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
EOF
export APT_CONFIG=$work/apt.conf
apt-get update -qq
apt-get install -qq --download-only "$@" >/dev/null
for package in "$work"/archives/*.deb; do
  dpkg-deb --extract "$package" "$work/root"
done
rm -rf "$work"/root/usr/share/{doc,info,locale,man}
mv "$work/root/usr" "$home/usr"
