#!/bin/sh
# Stops the service when the package goes, but not when another version replaces it (dpkg: upgrade; rpm: 1).
set -e

case "$1" in
  remove | 0)
    if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
      systemctl --no-reload disable --now @PACKAGE@.service || true
    fi
    ;;
esac
