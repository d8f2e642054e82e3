#!/bin/sh
# Make a virtual environment with helperd (editable) and its tools: setup.sh DIRECTORY
#
# python-prctl is built from source. What that needs and is missing is installed with apt where
# that is possible without asking, and named otherwise. PYTHON chooses the interpreter; with OLDEST
# the dependencies are the oldest that pyproject.toml allows.
set -eu

venv=$1
cd "$(dirname "$0")/.."

fail() {
	echo "setup: $*" >&2
	exit 1
}

suitable() {
	"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
	if [ -n "${PYTHON:-}" ]; then
		suitable "$PYTHON" || fail "$PYTHON is not a working Python 3.11 or newer"
		command -v "$PYTHON"
		return
	fi
	for name in python3.14 python3.13 python3.12 python3.11 python3; do
		if suitable "$name"; then
			command -v "$name"
			return
		fi
	done
	fail "no Python 3.11 or newer found: install one, or set PYTHON to its path"
}

has_header() {
	echo "#include <$1>" | cc -E - >/dev/null 2>&1
}

has_python_header() {
	"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

# The Debian packages for what is missing. Only Debian's own interpreters lack the last two.
missing_packages() {
	command -v cc >/dev/null || echo gcc
	has_header stdlib.h || echo libc6-dev
	has_header sys/capability.h || echo libcap-dev
	has_header lz4.h || echo liblz4-dev # for the C programs of the benchmark
	command -v xz >/dev/null || echo xz-utils
	has_python_header || echo "python$version-dev"
	"$python" -c 'import ensurepip' 2>/dev/null || echo "python$version-venv"
}

install() {
	if ! command -v apt-get >/dev/null; then
		fail "please install what these Debian packages hold, then try again: $*"
	elif [ "$(id -u)" -eq 0 ]; then
		as_root=
	elif sudo -n true 2>/dev/null; then
		as_root='sudo -n'
	else
		fail "please run this first: sudo apt-get install $*"
	fi
	echo "setup: installing $*"
	$as_root apt-get -qq update || echo 'setup: apt-get update failed, trying with what is known'
	$as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >/dev/null
}

if [ -z "${PYTHON:-}" ] && suitable "$venv/bin/python"; then
	python=$venv/bin/python
else
	python=$(find_python)
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

packages=$(missing_packages | tr '\n' ' ')
if [ -n "$packages" ]; then
	# shellcheck disable=SC2086 # one word for each package
	install $packages
	packages=$(missing_packages | tr '\n' ' ')
	[ -z "$packages" ] || fail "still missing after their installation: $packages"
fi

if [ "$python" != "$venv/bin/python" ]; then
	echo "setup: making $venv with $python (Python $version)"
	"$python" -m venv --clear "$venv"
fi
if [ -n "${OLDEST:-}" ]; then
	"$venv/bin/python" scripts/oldest.py >"$venv/oldest.txt"
	export PIP_CONSTRAINT="$venv/oldest.txt"
fi
echo "setup: installing helperd and its tools into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev,fast,fleet,zstd]'
