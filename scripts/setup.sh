# Sourced by ./quickstart, ./test and .ci/run: installs what is missing and builds. Not a command of its own.
# shellcheck shell=bash

if [[ -t 2 ]]; then
  say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
else
  say() { printf '==> %s\n' "$*" >&2; }
fi
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# install_packages STAGE...: apt-get installs the packages of these stages of packages.txt that are not there yet.
install_packages() {
  local wanted=() missing=() stage package
  while read -r stage package; do
    case "$stage" in '' | '#'*) continue ;; esac
    [[ " $* " == *" $stage "* ]] && wanted+=("$package")
  done <packages.txt
  for package in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
  done
  ((${#missing[@]} == 0)) && return
  command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get to install them (oscarkv is built on Debian 12): ${missing[*]}"
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "these packages are missing; run this as root once, or install sudo, or install them yourself: ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${#missing[@]} Debian packages"
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    die "apt-get could not install: ${missing[*]} (the end of its log is above)"
  fi
  rm -f "$log"
}

# build_preset PRESET TARGET...: configures build/<preset> and builds the targets.
build_preset() {
  local preset=$1 dir=build/$1
  shift
  [[ $preset == ci ]] && dir=build/release
  mkdir -p build
  if ! cmake --preset "$preset" "${CMAKE_EXTRA[@]}" >"build/configure-$preset.log" 2>&1; then
    tail -n 40 "build/configure-$preset.log" >&2
    die "cmake could not configure (the whole log: build/configure-$preset.log)"
  fi
  say "building $* ($dir)"
  local jobs
  jobs=$(nproc)
  # gRPC files need up to 1.5 GiB each: fewer jobs where memory is short.
  local gib
  gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  ((gib / 2 < jobs)) && jobs=$((gib / 2 > 0 ? gib / 2 : 1))
  if [[ -t 2 ]]; then
    cmake --build "$dir" -j "$jobs" --target "$@" || die "the build failed"
  else
    cmake --build "$dir" -j "$jobs" --target "$@" >"build/build-$preset.log" 2>&1 || {
      grep -E -m 20 -A 6 'error|FAILED' "build/build-$preset.log" >&2
      die "the build failed (the whole log: build/build-$preset.log)"
    }
  fi
}
CMAKE_EXTRA=()
