#!/bin/sh
# The state directory, the certificates and the user stay, even on purge: they hold keys and grants that exist nowhere else.
set -e

if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
