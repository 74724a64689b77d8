#!/bin/sh
# Makes the user before files that belong to it are unpacked.
set -e

users() {
  cat <<'CONF'
@SYSUSERS@
CONF
}

if command -v systemd-sysusers >/dev/null 2>&1; then
  users | systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} --replace=/usr/lib/sysusers.d/@PACKAGE@.conf -
elif ! getent passwd @USER@ >/dev/null; then
  groupadd --system @USER@
  useradd --system --gid @USER@ --home-dir @HOME@ --no-create-home --shell /usr/sbin/nologin @USER@
fi
