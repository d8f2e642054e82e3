#!/usr/bin/env bash
# Run a command in a Debian that nobody prepared, in a clone of this repository:
#
#     scripts/cleanroot.sh [--renew] SUITE [COMMAND [ARGUMENT]...]
#
# The root has git, make, python3, ca-certificates and what those need, nothing else; COMMAND runs
# there as root, in namespaces of its own, and is `make demo test` if there is none. What is cloned
# is HEAD: changes that are not committed are not there.
#
# A root is made once, kept as an archive in ~/.cache/helperd (HELPERD_ROOTS names another folder),
# and unpacked for each run; it is made anew with --renew, or when it is two weeks old. Packages come from where this machine's come
# from: the mirror of its apt sources (DEBIAN_MIRROR names another), its pip settings, its proxies
# and its certificates. Needs root and mmdebstrap, which it installs.
set -euo pipefail

readonly packages=git,make,python3,ca-certificates
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly top

fail() {
	echo "cleanroot: $*" >&2
	exit 1
}

# Where this machine gets its own release of Debian from.
mirror() {
	local codename
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
		awk -v codename="$codename" '$2 == codename { print $1; exit }'
}

install_mmdebstrap() {
	# Two of us may come here at once.
	exec 9>"$(dirname "$archive")/lock"
	flock 9
	! command -v mmdebstrap >/dev/null || return 0 # the other one has done it
	echo 'cleanroot: installing mmdebstrap'
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 \
		install -y --no-install-recommends mmdebstrap debian-archive-keyring >/dev/null
	exec 9>&-
}

make_root() { # SUITE ARCHIVE
	local from=${DEBIAN_MIRROR:-$(mirror)}
	[ -n "$from" ] || fail 'no Debian mirror in the apt sources: set DEBIAN_MIRROR'
	mkdir -p "$(dirname "$2")"
	command -v mmdebstrap >/dev/null || install_mmdebstrap
	echo "cleanroot: making a root of $1"
	# A testing suite may be served from a mirror that lags behind.
	mmdebstrap --quiet --format=tar --variant=apt --include="$packages" \
		--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' "$1" "$2.$$" "$from"
	mv "$2.$$" "$2"
}

# What the root shares with this machine: how the network is reached, and who is trusted there.
settings() { # ROOT
	local file
	for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt \
		"$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
		[ -e "$file" ] || continue
		case $file in
		"$HOME"/*) install -D -m 644 "$file" "$1/root${file#"$HOME"}" ;;
		*) install -D -m 644 "$file" "$1$file" ;;
		esac
	done
}

environment() {
	echo PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	echo HOME=/root
	echo LANG=C.UTF-8
	env | grep -E '^(CI|OLDEST|ARGS|(PIP|SSL_CERT|REQUESTS_CA|CURL_CA)_[A-Z_]*|(https?|no)_proxy|(HTTPS?|NO)_PROXY)=' || true
}

# Runs in new namespaces: makes ROOT the root of all, not just of this process, so that what a
# chroot forbids (user namespaces) is possible.
inside() { # ROOT COMMAND...
	local root=$1 status=0
	shift
	local -a variables
	mapfile -t variables < <(environment)
	mount --make-rprivate /
	mount --bind "$root" "$root"
	mount -t proc proc "$root/proc"
	mount --rbind /sys "$root/sys"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
	cd "$root"
	mkdir -p .before
	pivot_root . .before
	cd /
	# The root has no umount.
	python3 -c 'import ctypes; ctypes.CDLL(None).umount2(b"/.before", 2)' # MNT_DETACH
	rmdir /.before
	# Not exec: this shell stays, as the parent of orphans.
	env -i "${variables[@]}" bash -euc '
		git clone --quiet --no-hardlinks /srv/helperd.git ~/helperd
		cd ~/helperd
		exec "$@"' cleanroot "$@" </dev/null || status=$?
	exit "$status"
}

if [ "${1:-}" = --inside ]; then
	shift
	inside "$@"
fi

renew=
if [ "${1:-}" = --renew ]; then
	renew=1
	shift
fi
[ $# -ge 1 ] || fail 'usage: scripts/cleanroot.sh [--renew] SUITE [COMMAND [ARGUMENT]...]'
suite=$1
shift
[ $# -ge 1 ] || set -- make demo test
[ "$(id -u)" -eq 0 ] || fail 'only root can make a root; `make test` runs the tests right here'

archive=${HELPERD_ROOTS:-${XDG_CACHE_HOME:-$HOME/.cache}/helperd}/$suite.tar
if [ -n "$renew" ] || [ -z "$(find "$archive" -mtime -14 2>/dev/null)" ]; then
	make_root "$suite" "$archive"
fi
root=$(mktemp -d "${TMPDIR:-/tmp}/cleanroot-$suite.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
# Device nodes are this machine's; making them may not be allowed.
tar -C "$root" -xf "$archive" --exclude './dev/*'
settings "$root"
git clone --quiet --bare --depth 1 "file://$top" "$root/srv/helperd.git"
echo "cleanroot: in $suite: $*"
status=0
unshare --mount --pid --ipc --uts --fork --kill-child -- \
	"${BASH_SOURCE[0]}" --inside "$root" "$@" || status=$?
exit "$status"
