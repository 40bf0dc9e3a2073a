# Where the programs of the test cluster are: sourced by the scripts beside it.
# shellcheck shell=bash disable=SC2034

cluster=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/cluster

# A directory is named after what its programs are made of, so a cache can be kept, shared and restored without
# ever being stale. The Go release that compiled them is left out: a machine without Go can use them.
digest() { cat "$@" | sha256sum | cut -c1-12; }
kubernetes=$cache/kubernetes-$(digest "$cluster"/kubernetes/go.{mod,sum})
knative=$cache/knative-$(digest "$cluster"/knative/go.{mod,sum})
testcluster=$cache/testcluster-$(digest "$cluster"/kubernetes/go.{mod,sum} "$cluster"/kubernetes/testcluster/*.go)
stub=$cache/stub-$(digest "$cluster"/knative/go.{mod,sum} "$cluster"/knative/stub/*.go)

# The three that come with envtest's KUBEBUILDER_ASSETS are taken from there, where it is set.
program() {
    if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$1" ]; then
        echo "$KUBEBUILDER_ASSETS/$1"
    else
        echo "$kubernetes/$1"
    fi
}

# suite_log SUITE CLASS : where the output of a suite is. SUITE_RUN tells several of the same kind apart.
suite_log() { echo "$SLUICE_CLUSTER_DIR/$1-${2%%.*}${SUITE_RUN:+-$SUITE_RUN}.log"; }

# suite LOG INDENT COMMAND... : runs a Go test, its output to LOG, and prints one line for each test at INDENT, failed ones first,
# and those below that failed; then the sum. Its status is the command's.
suite() {
    local log=$1 indent=$2 status=0
    shift 2
    "$@" >"$log" 2>&1 || status=$?
    grep -E "^ *--- FAIL:" "$log" || true
    grep -E "^$indent--- (PASS|SKIP):" "$log" | sort || true
    local count=()
    for outcome in PASS FAIL SKIP; do count+=("$(grep -c "^$indent--- $outcome:" "$log" || true)"); done
    echo "${count[0]} passed, ${count[1]} failed, ${count[2]} skipped, $SECONDS s; status $status; log: $log"
    [ "${count[0]}" != 0 ] || status=1 # a filter that nothing matches
    return "$status"
}

# kept LOG CONTROL : fails with the names of the tests that passed in the log CONTROL and not in LOG, and of those that failed in LOG
# and not in CONTROL, which may not have come to them.
kept() {
    local lost status=0
    grep -q -- '--- PASS: ' "$2" || { echo "nothing passes with the control: $2" >&2; return 1; }
    # of OUTCOME LOG
    of() { sed -nE "s/^ *--- $1: ([^ ]+) .*/\1/p" "$2" | sort; }
    lost=$(comm -23 <(of PASS "$2") <(of PASS "$1"))
    [ -z "$lost" ] || { printf 'passed with the control and not here (%s): %s\n' "$1" "$lost" >&2; status=1; }
    lost=$(comm -23 <(of FAIL "$1") <(of FAIL "$2"))
    [ -z "$lost" ] || { printf 'failed here (%s) and not with the control: %s\n' "$1" "$lost" >&2; status=1; }
    return "$status"
}
