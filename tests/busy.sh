#!/usr/bin/env bash
# Runs the tests on a busy machine: beside eight busy loops, which end with this script.
#
#     tests/busy.sh [RUNS [ARGUMENTS OF cargo test]]
#
# RUNS: default 3. Prints the numbers of passed and failed tests of each run. Fails if a run failed.
# The output of the tests is in target/busy-RUN.log.
set -u
cd "$(dirname "$0")/.." || exit 2
runs=${1:-3}
shift $(($# > 0))

loops=()
trap '[ ${#loops[@]} -eq 0 ] || kill "${loops[@]}" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Compiles without the load.
cargo test --no-run "$@" || exit 2

for _ in 1 2 3 4 5 6 7 8; do
    # Each loop checks that the script runs, so that it ends even after a `kill -9` of the script.
    (
        trap - EXIT
        while kill -0 $$ 2>/dev/null; do :; done
    ) &
    loops+=($!)
done

bad=0
for run in $(seq "$runs"); do
    log=target/busy-$run.log
    began=$SECONDS
    cargo test --no-fail-fast "$@" >"$log" 2>&1
    status=$?
    awk -v run="$run" -v runs="$runs" -v status="$status" -v took=$((SECONDS - began)) '
        /^test result: / { passed += $4; failed += $6 }
        /^test .* FAILED$/ { names = names "\n  " $2 }
        END { printf "run %d of %d: %d passed, %d failed, exit status %d, %d s%s\n", run, runs, passed, failed, status, took, names }
    ' "$log"
    [ "$status" -eq 0 ] || bad=$((bad + 1))
done
echo "$((runs - bad)) of $runs runs passed"
[ "$bad" -eq 0 ]
