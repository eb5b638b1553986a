#!/usr/bin/env bash
# Debian packages that building and testing need, installed once and only when
# something is missing. Everything else comes from Go modules.
set -euo pipefail
list=()
command -v gcc >/dev/null || list+=(gcc libc6-dev)
[ -e /usr/include/seccomp.h ] || list+=(libseccomp-dev)
[ -e /bin/busybox ] || list+=(busybox-static)
command -v mmdebstrap >/dev/null || list+=(mmdebstrap)
[ ${#list[@]} -eq 0 ] && exit 0
echo "installing Debian packages: ${list[*]}"
if [ "$(id -u)" -ne 0 ]; then
  echo "make deps: not root; run: sudo apt-get install ${list[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${list[@]}" >/dev/null
