#!/bin/sh
# What only the tests need: a file system to try every kind of pool on.
set -eu
command -v mkfs.xfs >/dev/null && exit 0
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends xfsprogs
