#!/usr/bin/env bash
# Everything about a GPU in one command and nine minutes: builds, runs every op, measures every row of
# docs/performance.md beside the libraries that are installed, and runs compute-sanitizer and all tests of what a GPU
# computes. Of the ops a sample comes first that calls every kernel, then all others as far as the time goes, which the
# table says; `--parts build,tests` leaves them all of it. Cores that are idle compile their kernels from the beginning on.
#
#   scripts/gpu_check.sh [--parts build,every_op,bench,memcheck,racecheck,tests] [--minutes 9] [--small] FOLDER
#
# FOLDER gets gpu.json, gpu.md (the table), gpu.png and five logs, each complete as far as the run came. A part that
# fails or outlasts its time is recorded, and the next one begins. --small: tiny sizes and one file of tests. --cpu:
# without a GPU, to try this script itself. PYTHON names the interpreter, JOBS how many processes run at once.
# Exit status: 0; 1 if a part failed; 2 without a GPU or with wrong arguments; 130 if it was interrupted.
set -uo pipefail
# Children in process groups of their own: Ctrl-C comes here alone, and they do not ignore the signal that ends them.
set -m
cd "$(dirname "$0")/.." || exit 2

usage() { echo "usage: scripts/gpu_check.sh [--parts LIST] [--minutes N] [--small] [--cpu] FOLDER" >&2; exit 2; }

every=build,every_op,bench,memcheck,racecheck,tests
device=cuda small="" minutes=9 folder="" parts=$every
while [ $# -gt 0 ]; do
    case $1 in
        --parts | --minutes) [ $# -ge 2 ] || usage ;;&
        --parts) parts=$2; shift ;;
        --minutes) minutes=$2; shift ;;
        --small) small=--small ;;
        --cpu) device=cpu small=--small ;;
        -*) usage ;;
        *) [ -z "$folder" ] || usage; folder=$1 ;;
    esac
    shift
done
[ -n "$folder" ] || usage
[[ $minutes =~ ^[0-9]+$ ]] || usage
for name in ${parts//,/ }; do
    [[ ,$every, == *",$name,"* ]] || usage
done

python=${PYTHON:-python3}
# nproc gives OMP_NUM_THREADS where that is set.
cores=$(env -u OMP_NUM_THREADS nproc)
export JOBS=${JOBS:-$((cores < 14 ? cores : 14))}
export PATH="$PATH:/usr/local/cuda/bin" PYTHONUNBUFFERED=1
# The package runs from here even if it cannot be installed.
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
if [ $device = cuda ]; then
    if ! reason=$("$python" -c 'import sys, torch
sys.exit(0 if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU")' 2>&1); then
        echo "gpu_check: no GPU to check: $(tail -n 1 <<<"$reason")" >&2
        exit 2
    fi
fi
mkdir -p "$folder" || exit 2
folder=$(cd "$folder" && pwd)
deadline=$((SECONDS + minutes * 60))
# The limits of parts are those of nine minutes; where there are more, each has more.
scale=$((minutes > 9 ? minutes : 9))
# For the table and the figure at the end.
reserve=15 worst=0 child="" running="" warming="" warm_log="" compiling=""
declare -A begun=()

record() { # NAME STATUS SECONDS DETAIL
    printf '%-10s %-12s %4d s  %s\n' "$1" "$2" "$3" "$4"
    "$python" benchmarks/gpu/summary.py "$folder" part "$@"
}

finish() {
    "$python" benchmarks/gpu/summary.py "$folder"
    echo "written to $folder: $(cd "$folder" && echo *)"
}

interrupted() {
    trap '' INT TERM
    [ -z "$warming" ] || stop_warming 0
    stop_compiling
    # timeout passes it on to all that it has started.
    if [ -n "$child" ]; then
        kill -TERM "$child" 2>/dev/null
        wait "$child" 2>/dev/null
        record "$running" interrupted 0 ""
    fi
    echo "gpu_check: interrupted; what was found is kept" >&2
    finish
    exit 130
}
trap interrupted INT TERM

# The line that says most of what a part's log says.
gist() { # NAME LOG
    case $1 in
        every_op) echo "$(grep -c ': ok$' "$2") ok; $(grep -c ': not there' "$2") not there;" \
            "$(grep ': FAILED' "$2" | sed 's/: FAILED.*//' | paste -sd, | cut -c1-200)" ;;
        tests) { grep -E '^=+ .*(passed|failed|error|no tests)' "$2" | tail -n 1 | tr -d = || grep -c PASSED "$2"
            grep -oE '\[[0-9]+ items\]|collected [0-9]+ items' "$2" | head -n 1 | sed -E 's/[^0-9]*([0-9]+).*/of \1/'
            grep -E '^the sample, ' "$2"; } | paste -sd ';' ;;
        *check) echo "$(grep -E '(ERROR|RACECHECK) SUMMARY' "$2" | tail -n 1 | tr -d =)" \
            "$(grep -q SUMMARY "$2" || tail -n 1 "$2")" "$(grep -c ': ok$' "$2") ops ok" ;;
        build) grep -E '^(triton|cuda) ' "$2" | tr -s ' ' | paste -sd ';' | cut -c1-250
            grep -m 1 -iE '(^| )error:' "$2" ;;
        *) tail -n 1 "$2" ;;
    esac 2>/dev/null | head -c 280
}

# Begin a log anew at its first part of this run; two parts may share it.
open_log() { # TITLE LOG
    [ -n "${begun[$2]-}" ] || : >"$2"
    begun[$2]=yes
    printf '=== %s\n' "$1" >>"$2"
}

# Of a long log the begin and the end: what comes back from another machine must stay small.
shorten() { # LOG
    [ "$(wc -c <"$1")" -gt 4194304 ] || return 0
    local short
    short=$(mktemp)
    { head -c 1048576 "$1"; printf '\n[…]\n'; tail -c 2097152 "$1"; } >"$short"
    cat "$short" >"$1"
    rm -f "$short"
}

part() { # NAME LIMIT LOG COMMAND...
    local name=$1 limit=$2 log=$folder/$3 left=$((deadline - SECONDS - reserve)) begin=$SECONDS status own start
    local grace=10
    shift 3
    # pytest sums up what there is, which takes a while after thousands of tests.
    [ "$name" != tests ] || grace=30 left=$((left - 15))
    [[ ,$parts, == *",$name,"* ]] || return 0
    if [ $left -lt 5 ]; then
        record "$name" skipped 0 "no time left"
        worst=1
        return 0
    fi
    [ "$limit" -le $left ] || limit=$left
    printf '%-10s at most %d s\n' "$name" "$limit"
    open_log "$name" "$log"
    start=$(wc -c <"$log")
    # Straight into the log: whoever kills this script has what there is.
    LIMIT=$limit timeout --signal=INT --kill-after=$grace "$limit" "$@" >>"$log" 2>&1 </dev/null &
    child=$! running=$name
    wait $child
    status=$?
    child=""
    own=$(mktemp)
    tail -c +$((start + 1)) "$log" >"$own"
    shorten "$log"
    case $status in
        0) status=passed ;;
        124 | 137) status="out of time" worst=1 ;;
        *) status="failed ($status)" worst=1 ;;
    esac
    record "$name" "$status" $((SECONDS - begin)) "$(gist "$name" "$own")"
    rm -f "$own"
}

build() { # DEVICE PYTHON
    local status=0 version repository=$PWD
    version=$("$2" -c 'import setuptools; print(setuptools.__version__)')
    echo "setuptools $version"
    if [ "$1" = cuda ]; then
        export MOE_KERNELS_CUDA=auto
        if [ "${version%%.*}" -ge 77 ] 2>/dev/null; then
            "$2" -m pip install --no-build-isolation --no-deps -e . || status=$?
        else
            # It refuses pyproject.toml for the form of its license: from elsewhere, setup.py builds without it.
            (cd "$(mktemp -d)" && "$2" "$repository/setup.py" build_native --build-lib "$repository") || status=$?
        fi
    fi
    "$2" -m moe_kernels && return "$status"
}

# One process for each op and type: Triton compiles for seconds, and one op that hangs keeps no other from its turn.
every_op() { # DEVICE PYTHON
    [ "$1" = cuda ] || exec "$2" benchmarks/gpu/every_op.py --device "$1"
    local op type ops=(grouped_mm fused_experts grouped_lora topk_gating route permute unpermute)
    export OMP_NUM_THREADS=1 END=$(($(date +%s) + LIMIT - 5))
    for op in "${ops[@]}" "fused_experts nf4" "fused_experts int8"; do
        for type in bfloat16 float32; do printf '%s\n' "$op" "$type"; done
    done | xargs -d '\n' -n 2 -P "$JOBS" bash -c 'one_op "$@"' "$2"
}

one_op() { # OP TYPE; $0 is PYTHON
    local left=$((END - $(date +%s))) status
    # Whole lines: others write into the same log.
    timeout --foreground --signal=KILL $((left > 1 ? left : 1)) \
        "$0" benchmarks/gpu/every_op.py --ops "$1" --dtypes "$2" 2>&1 | sed -u ''
    status=${PIPESTATUS[0]}
    [ "$status" -ne 137 ] || echo "FAILED: no answer from $1 $2"
    return "$status"
}

run_tests() { # DEVICE PYTHON SMALL
    local options=() files=(tests/ops tests/backends tests/test_layer.py tests/integrations/test_cuda_graph.py)
    for plugin in xdist pytest_timeout; do
        "$2" -c "import $plugin" 2>/dev/null || continue
        case $plugin in
            # In their order: the sample comes first.
            xdist) options+=(-n "$JOBS" --maxschedchunk=8) ;;
            pytest_timeout) options+=(--timeout=60 --timeout-method=thread) ;;
        esac
    done
    [ -z "$3" ] || files=(tests/ops/test_route.py) options=()
    export MOE_TEST_DEVICE=$1 OMP_NUM_THREADS=2
    exec "$2" -m pytest -v --tb=short --maxfail=300 -p no:cacheprovider "${options[@]}" "${files[@]}"
}

sanitize() { # TOOL PYTHON
    local options=(--tool "$1" --error-exitcode 9 --print-limit 30)
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer: not found"; return 127; }
    # Python and torch take longer to start than it waits by default.
    ! compute-sanitizer --help 2>&1 | grep -q -- --launch-timeout || options+=(--launch-timeout 120)
    # Every tensor in an allocation of its own, so that a step over its end is seen.
    [ "$1" != memcheck ] || export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    exec compute-sanitizer "${options[@]}" "$2" benchmarks/gpu/every_op.py --dtypes bfloat16 --backends cuda,triton
}

bench() { # DEVICE PYTHON SMALL FOLDER
    # shellcheck disable=SC2086
    exec "$2" benchmarks/gpu/run.py --device "$1" --output "$4" --seconds $((LIMIT - 3)) $3
}

export -f build every_op one_op run_tests sanitize bench
call() { # NAME LIMIT LOG FUNCTION ARGUMENTS...
    local name=$1 limit=$(($2 * scale / 9)) log=$3 function=$4
    shift 4
    part "$name" "$limit" "$log" bash -c "$function \"\$@\"" "$function" "$@"
}

start_warming() {
    [[ ,$parts, == *,bench,* ]] && [ $((deadline - SECONDS)) -gt 120 ] || return 0
    warm_log=$(mktemp)
    # shellcheck disable=SC2086
    "$python" benchmarks/gpu/warm.py --device $device $small >"$warm_log" 2>&1 </dev/null &
    warming=$!
}

# What is not compiled by then, the benchmarks compile themselves.
stop_warming() {
    [ -n "$warming" ] || return 0
    local waited=0
    while [ $waited -lt "$1" ] && kill -0 "$warming" 2>/dev/null; do
        sleep 1
        waited=$((waited + 1))
    done
    # The whole group: it has processes of its own.
    kill -KILL -- "-$warming" 2>/dev/null
    wait "$warming" 2>/dev/null
    warming=""
    echo "waited $waited s for kernels to be compiled"
    open_log "compiled beforehand" "$folder/bench.log"
    cat "$warm_log" >>"$folder/bench.log"
    rm -f "$warm_log"
}

# The tests have more kernels to compile than anything else, which needs no GPU: whatever cores are idle do it, from the
# beginning to the first test, except beside the benchmark.
start_compiling() {
    [[ ,$parts, == *,tests,* ]] && [ $device = cuda ] && [ -z "$small" ] || return 0
    "$python" -c "import xdist" 2>/dev/null || return 0
    local gpu
    gpu=$("$python" benchmarks/gpu/compile_tests.py 2>/dev/null) || return 0
    MOE_COMPILE_FOR=$gpu CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1 PYTHONPATH="$PWD/benchmarks:$PYTHONPATH" \
        nice -n 19 "$python" -m pytest -p gpu.compile_tests -p no:cacheprovider -q --tb=no -n "$JOBS" \
        -k "triton and not test_compile" tests/ops tests/backends >/dev/null 2>&1 </dev/null &
    compiling=$!
}

signal_compiling() { [ -z "$compiling" ] || kill "-$1" -- "-$compiling" 2>/dev/null; }

stop_compiling() {
    [ -n "$compiling" ] || return 0
    signal_compiling KILL
    wait "$compiling" 2>/dev/null
    compiling=""
}

# Seconds for the parts after the benchmark; it has what they leave, but never less than carries the goals.
after=0
for name in memcheck:45 racecheck:30 tests:70; do
    [[ ,$parts, != *",${name%:*},"* ]] || after=$((after + ${name#*:} * scale / 9))
done

start_compiling
call build 170 build.log build $device "$python"
call every_op 75 every_op.log every_op $device "$python"
start_warming
# On a CPU there is nothing to compile: it is only tried.
[ $device = cuda ] && stop_warming 60 || stop_warming 5
left=$((deadline - SECONDS - reserve - after))
signal_compiling STOP
call bench $((left > 190 ? left : 190)) bench.log bench $device "$python" "$small" "$folder"
signal_compiling CONT
if [ $device = cuda ]; then
    call memcheck 60 sanitizer.log sanitize memcheck "$python"
    call racecheck 45 sanitizer.log sanitize racecheck "$python"
else
    record memcheck skipped 0 "needs a GPU"
    record racecheck skipped 0 "needs a GPU"
fi
stop_compiling
# All that is left.
call tests $((minutes * 60)) tests.log run_tests $device "$python" "$small"
finish
exit $worst
