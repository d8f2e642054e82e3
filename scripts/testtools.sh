#!/bin/sh
# Install, as root and with apt, the programs that single tests ask something and that are missing.
# Nothing fails here: a test whose program is missing is skipped and says so.
set -eu

missing() {
	command -v zsh >/dev/null || echo zsh
	command -v fish >/dev/null || echo fish
	command -v man >/dev/null || echo man-db
	command -v mount >/dev/null || echo mount
	command -v systemd-analyze >/dev/null || echo systemd
}

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "setup: tests that need one of these Debian packages are skipped: $packages"
	exit 0
fi
echo "setup: installing $packages"
apt-get -qq update || true
# shellcheck disable=SC2086 # one word for each package
DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
	install -y --no-install-recommends $packages >/dev/null 2>&1 ||
	echo "setup: could not install them all, tests that need them are skipped"
