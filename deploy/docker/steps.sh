#!/usr/bin/env bash
# The steps of the image, for the Dockerfile and for the test that runs them without a container engine. Run as root, in a root file system
# of Debian 12.
#   steps.sh packages STAGE...         apt-get installs these stages of packages.txt (beside this file)
#   steps.sh build SOURCE DESTINATION [CMAKE_ARGS...]  compiles SOURCE and installs it below DESTINATION
#   steps.sh runtime VERSION           the user, the list of what is inside (SBOM), and no leftovers
set -euo pipefail

packages() {
  local list stages=" $* "
  list=$(awk -v stages="$stages" '!/^#/ && NF == 2 && index(stages, " " $1 " ") {print $2}' "$(dirname "$0")/packages.txt")
  [[ -n $list ]] || { echo "steps.sh: no packages of the stages$stages" >&2; exit 1; }
  apt-get update
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $list
  apt-get clean
  rm -rf /var/lib/apt/lists/*
}

build() {
  local source=$1 destination=$2
  shift 2
  cmake -S "$source" -B "$source/build/image" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr \
    -DOSCARKV_TESTS=OFF -DOSCARKV_BENCH=OFF "$@"
  cmake --build "$source/build/image" -j "$(nproc)" --target oscarkv_package_files
  DESTDIR=$destination cmake --install "$source/build/image" --component oscarkv --strip
  rm -rf "$source/build/image"
}

# SPDX 2.3: every Debian package of the image, and oscarkv itself.
sbom() {
  local version=$1
  printf '{"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "oscarkv-%s",\n' "$version"
  printf ' "documentNamespace": "https://spdx.org/spdxdocs/oscarkv-%s",\n' "$version"
  printf ' "creationInfo": {"created": "%s", "creators": ["Tool: oscarkv-steps.sh"]},\n "packages": [\n' \
    "$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%dT%H:%M:%SZ)"
  printf '  {"SPDXID": "SPDXRef-oscarkv", "name": "oscarkv", "versionInfo": "%s", "downloadLocation": "NOASSERTION"}' "$version"
  # shellcheck disable=SC2016
  dpkg-query -W -f '${binary:Package} ${Version} ${Architecture}\n' | while read -r name version arch; do
    name=${name%%:*}
    printf ',\n  {"SPDXID": "SPDXRef-deb-%s", "name": "%s", "versionInfo": "%s", "downloadLocation": "NOASSERTION",' \
      "${name//[^A-Za-z0-9.-]/-}-$arch" "$name" "$version"
    printf ' "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",'
    printf ' "referenceLocator": "pkg:deb/debian/%s@%s?arch=%s"}]}' "${name//+/%2B}" "${version//+/%2B}" "$arch"
  done
  printf '\n ]}\n'
}

runtime() {
  groupadd --system --gid 10001 oscarkv
  useradd --system --uid 10001 --gid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin oscarkv
  mkdir -p /usr/share/oscarkv
  sbom "$1" >/usr/share/oscarkv/sbom.spdx.json
  rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/log/* /tmp/*
  # Fails here, not in the cluster, when a library is missing.
  oscarkv --version
}

command=${1:?steps.sh packages|build|runtime}
shift
case $command in
  packages | build | runtime) "$command" "$@" ;;
  *) echo "steps.sh: unknown step '$command'" >&2; exit 2 ;;
esac
