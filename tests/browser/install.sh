#!/bin/sh
# Chromium and its driver by apt, where they are missing: root on Debian or Ubuntu.
set -eu
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit; fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
	echo "error: no chromium and chromedriver; install both (installing them here needs apt and root)" >&2
	exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
