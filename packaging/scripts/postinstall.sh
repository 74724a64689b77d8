#!/bin/sh
# Nothing is enabled or started: a fresh installation has no certificates yet. What runs is restarted, so that daemon and
# operators' commands are of one version.
set -e

if [ -e "${DPKG_ROOT:-}/usr/lib/tmpfiles.d/@PACKAGE@.conf" ] && command -v systemd-tmpfiles >/dev/null 2>&1; then
  systemd-tmpfiles ${DPKG_ROOT:+--root="$DPKG_ROOT"} --create @PACKAGE@.conf
fi
if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
  systemctl try-restart @PACKAGE@.service || true
fi
