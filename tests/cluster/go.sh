# A Go that is new enough: sourced by tests/cluster/build and configs/helm/render.
# shellcheck shell=bash

go_release=1.26.8 # fetched where there is none

# find_go MINOR [COMMAND...] : a Go of 1.MINOR at least is `go` from here on. One that is older fetches it as a module, by COMMAND.
find_go() {
    local least=$1 minor
    shift
    command -v go >/dev/null || { echo "$0: Go is missing (Debian: apt-get install golang-go)" >&2; exit 69; }
    minor=$(go env GOVERSION | sed -E 's/^go1\.([0-9]+).*/\1/')
    [ "$minor" -lt "$least" ] || return 0
    local arch module root
    arch=$(go env GOARCH)
    module=golang.org/toolchain@v0.0.1-go$go_release.linux-$arch
    root=$(go env GOMODCACHE)/$module
    echo "$0: fetching Go $go_release" >&2
    (cd / && "$@" go mod download "$module") || exit
    # Module files have no run bits.
    local into=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/cluster/go-$go_release
    mkdir -p "${into%/*}"
    rm -rf "$into.part"
    [ -x "$into/bin/go" ] || {
        cp -r "$root" "$into.part"
        chmod -R u+w "$into.part"
        chmod +x "$into.part"/bin/* "$into.part/pkg/tool/linux_$arch"/*
        mv "$into.part" "$into"
    }
    export PATH=$into/bin:$PATH
}
