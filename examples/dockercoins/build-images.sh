#!/usr/bin/env bash
# Makes the images of the sample and of the tests as OCI archives in OUTDIR, without
# any registry: Go programs from this repository, Redis and busybox from Debian's
# packages (the mirrors are those that apt uses on this machine).
#
#   build-images.sh OUTDIR
#
# Each archive has a stamp beside it; what it is made of has not changed: nothing is
# done. `rm -r OUTDIR` makes all anew.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 OUTDIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
go=${GO:-go}
stamps=$out/.stamps
mkdir -p "$stamps"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# inputs of all images: how they are made
tool=$(cat tools/mkimage/*.go examples/dockercoins/build-images.sh go.sum | sha256sum)
mkimage() {
  [ -x "$work/mkimage" ] || CGO_ENABLED=0 $go build -o "$work/mkimage" ./tools/mkimage
  "$work/mkimage" "$@"
}

# stale NAME INPUT...: true when the archive is missing or something else was its
# input; remembers the input until fresh NAME.
stale() {
  local name=$1; shift
  printf '%s\n' "$tool" "$@" | sha256sum >"$work/$name.stamp"
  ! { [ -s "$out/$name.tar" ] && cmp -s "$work/$name.stamp" "$stamps/$name"; }
}
fresh() {
  cp "$work/$1.stamp" "$stamps/$1"
  echo "made $1.tar ($(du -h "$out/$1.tar" | cut -f1)B)"
}

# program PACKAGE IMAGE VERSION: one static binary as an image from scratch
goversion=$($go env GOVERSION GOARCH | tr '\n' ' ')
program() {
  local package=$1 image=$2 version=$3 name bin
  name=$(basename "$image")-$version
  stale "$name" "$goversion" "$(cat "$package"/*.* examples/dockercoins/{serve,redis}/*.go | sha256sum)" || return 0
  bin=$work/$name
  CGO_ENABLED=0 $go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$version" -o "$bin" "./$package"
  mkimage -o "$out/$name.tar" -name "$image:$version" -file "$bin:/$(basename "$package")" -entrypoint "/$(basename "$package")" \
    -user 65534:65534 -port 8080/tcp -dir /tmp:1777
  fresh "$name"
}

# busybox: every applet is a hard link, so that masking one does not mask the shell
busybox() {
  local bin=/bin/busybox links=() a
  [ -x "$bin" ] || { echo "build-images: $bin is missing; install the package busybox-static (tools/deps.sh does)" >&2; exit 1; }
  stale busybox-1 "$(sha256sum <"$bin")" || return 0
  for a in $("$bin" --list-full); do
    [ "$a" = bin/busybox ] || links+=(-link "/bin/busybox:/$a")
  done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$work/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$work/group"
  mkimage -o "$out/busybox-1.tar" -name proa/busybox:1 -file "$bin:/bin/busybox" "${links[@]}" -dir /tmp:1777 -dir /root:700 \
    -dir /var/www -file "$work/passwd:/etc/passwd" -file "$work/group:/etc/group" -cmd sh
  fresh busybox-1
}

# sources: those of apt's sources on this machine that are of this release
sources() {
  local release=$1 f n=0
  for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -e "$f" ] || continue
    grep -E "^deb .* $release(-security|-updates)? " "$f" >"$work/part.list" || continue
    cp "$work/part.list" "$work/source-$((n += 1)).list"
  done
  for f in /etc/apt/sources.list.d/*.sources; do
    [ -e "$f" ] || continue
    grep -qE "^Suites:.* $release( |-|$)" "$f" && cp "$f" "$work/source-$((n += 1)).sources"
  done
  [ "$n" -gt 0 ] || { echo "build-images: apt has no source for $release on this machine; add Debian's mirror to /etc/apt/sources.list" >&2; exit 1; }
}

# redis: Debian's redis-server with the libraries it needs, and no more
redis() {
  local release proxy opts=()
  # shellcheck disable=SC1091
  release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  stale redis-7 "$release $(dpkg --print-architecture)" || return 0
  [ -n "$release" ] || { echo "build-images: /etc/os-release names no release; is this Debian?" >&2; exit 1; }
  command -v mmdebstrap >/dev/null || { echo "build-images: mmdebstrap is missing; install it (tools/deps.sh does)" >&2; exit 1; }
  sources "$release"
  while read -r proxy; do opts+=(--aptopt="$proxy"); done < <(apt-config dump | grep -iE '^Acquire::https?::.*Proxy' || true)
  echo "fetching redis-server of Debian $release"
  TMPDIR=$work mmdebstrap --variant=extract --quiet --format=tar --include=redis-server \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr "${opts[@]}" "$release" "$work/redis-root.tar" "$work"/source-* 2>"$work/mmdebstrap.log" ||
    { cat "$work/mmdebstrap.log" >&2; echo "build-images: mmdebstrap could not fetch redis-server; does apt-get update work here?" >&2; exit 1; }
  printf 'root:x:0:0:root:/root:/usr/sbin/nologin\nredis:x:999:999::/data:/usr/sbin/nologin\n' >"$work/passwd"
  printf 'root:x:0:\nredis:x:999:\n' >"$work/group"
  local prune=() p
  for p in 'etc/[a-qs-z]*' 'etc/rc?.d' etc/resolv.conf lib/systemd 'usr/bin/[a-qs-z]*' 'usr/sbin/*' usr/share usr/lib/init usr/lib/lsb usr/lib/systemd usr/lib/tmpfiles.d \
    'usr/lib/*/perl*' 'usr/lib/*/gconv' 'usr/lib/*/security' 'usr/lib/*/libdb-*' 'usr/lib/*/libsemanage*' 'usr/lib/*/libsepol*' var run dev proc sys; do prune+=(-prune "$p"); done
  mkimage -o "$out/redis-7.tar" -name dockercoins/redis:7 -tar "$work/redis-root.tar" "${prune[@]}" \
    -file "$work/passwd:/etc/passwd" -file "$work/group:/etc/group" -dir /data:0755:999:999 -dir /tmp:1777 \
    -dir /proc:555 -dir /sys:555 -dir /dev -dir /run \
    -entrypoint /usr/bin/redis-server -cmd --bind -cmd '*' -cmd -::* -cmd --protected-mode -cmd no -workdir /data -user 999:999 -port 6379/tcp
  fresh redis-7
}

app=examples/dockercoins
program $app/rng dockercoins/rng v1
program $app/rng dockercoins/rng v2
program $app/hasher dockercoins/hasher v1
program $app/worker dockercoins/worker v1
program $app/webui dockercoins/webui v1
program test/images/web proa/web v1
program test/images/web proa/web v2
busybox
redis
