#!/bin/bash
# Builds the parts of DPDK that the test programs use from Debian's source, the way Debian does not: by clang, and by gcc with
# link-time optimization. `dpdk-from-source.sh FOLDER BIN` puts them into FOLDER/clang and FOLDER/gcc-lto; BIN has meson and
# ninja. Where the source cannot be had it says so, and the tests that need it are skipped.
set -euo pipefail
folder=$(realpath -m "$1") tools=$(realpath "$2")
mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" "$folder/apt/parts"
cd "$folder"

# Debian's own sources, for source packages, in a configuration of our own: nothing of the machine's is touched.
fetch() {
    sed -n 's/^Types:.*/Types: deb-src/; /^#/d; p' /etc/apt/sources.list.d/debian.sources > apt/parts/debian.sources
    cat > apt/apt.conf <<END
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$folder/apt/parts";
Dir::State::lists "$folder/apt/lists";
Dir::Cache "$folder/apt/cache";
APT::Sandbox::User "root";
END
    export APT_CONFIG="$folder/apt/apt.conf"
    apt-get update -q && apt-get source -q --download-only dpdk && mkdir -p source && tar xf dpdk_*.orig.tar.xz -C source --strip-components=1
}
if ! test -e source/meson.build; then
    fetch > fetch.log 2>&1 || { echo "The source of DPDK cannot be had here (build/dpdk-source/fetch.log): its tests are skipped."; exit 0; }
fi

libraries=(lib/librte_{kvargs,telemetry,eal,ring,rcu,mempool,hash,net,mbuf}.a drivers/librte_mempool_ring.a)
options=(-Ddefault_library=static -Dplatform=generic -Dtests=false '-Ddisable_apps=*' '-Ddisable_drivers=*/*'
         -Denable_drivers=mempool/ring,bus/vdev --buildtype=release)
build() {
    local how=$1; shift
    test -e "$how/built" && return
    PATH="$tools:$PATH" meson setup --wipe "$folder/$how" source "${options[@]}" "$@" > "$how.log" 2>&1 \
        || PATH="$tools:$PATH" meson setup "$folder/$how" source "${options[@]}" "$@" > "$how.log" 2>&1
    PATH="$tools:$PATH" ninja -C "$how" "${libraries[@]}" >> "$how.log" 2>&1
    touch "$how/built"
}
export CC=gcc
build gcc-lto -Db_lto=true
CC=$(command -v clang || command -v clang-14 || true)
[ -z "$CC" ] || build clang
