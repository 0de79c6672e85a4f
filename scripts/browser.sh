#!/bin/sh
# Install what the tests in a browser need: Playwright, and Chromium with its libraries.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1

cd labextension/ui-tests
if [ ! node_modules/.ready -nt yarn.lock ]; then
    echo "installing Playwright"
    jlpm install --immutable >install.log 2>&1 || {
        tail -n 30 install.log >&2
        exit 1
    }
    rm install.log
    touch node_modules/.ready
fi

[ ! -x /usr/bin/chromium ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Chromium is missing; on Debian: apt-get install chromium" >&2
    exit 1
fi
echo "installing Chromium"
apt-get -qq update
if ! DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --yes --no-install-recommends chromium >/dev/null; then
    # Ubuntu has it as a snap only; Playwright brings one along.
    jlpm playwright install --with-deps chromium
fi
