#!/usr/bin/env bash
# Debian packages that building needs, installed once and only when something is
# missing; with the word test, also what tests need. Everything else comes from Go
# modules.
set -euo pipefail
list=()
command -v gcc >/dev/null || list+=(gcc libc6-dev)
[ -e /usr/include/seccomp.h ] || list+=(libseccomp-dev)
command -v pkg-config >/dev/null || list+=(pkg-config)
[ -e /bin/busybox ] || list+=(busybox-static)
command -v mmdebstrap >/dev/null || list+=(mmdebstrap)
if [ "${1:-}" = test ]; then
  # tests look at web pages
  command -v chromium >/dev/null || list+=(chromium fonts-dejavu-core)
  # and list packet rules with the system's own program
  command -v nft >/dev/null || list+=(nftables)
fi
[ ${#list[@]} -eq 0 ] && exit 0
echo "installing Debian packages: ${list[*]}"
if [ "$(id -u)" -ne 0 ]; then
  echo "make deps: not root; run: sudo apt-get install ${list[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${list[@]}" >/dev/null
