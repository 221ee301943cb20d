#!/usr/bin/env bash
# The kernels, without Python and torch, under AddressSanitizer with UndefinedBehaviorSanitizer, and under
# ThreadSanitizer, once for each instruction set that this machine has. Needs GCC or Clang with their sanitizers; CXX
# names the compiler, JOBS how many of them run at once.
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=${CXX:-g++}
build=build/sanitize/$(basename "$compiler")
# The table of flags by the end of a file's name; CMake's ${...} is the shell's as well.
eval "$(sed -n 's/^set(\(FLAGS_[a-z0-9_]*\) \(.*\))$/\1="\2"/p' CMakeLists.txt)"
case $(uname -m) in
    x86_64 | amd64) foreign=neon ;;
    *) foreign='a[vm]x*' ;;
esac

# AMX on emulated tiles: what a real tile reads and writes, no sanitizer sees.
kernels=() defines=(-DMOE_EMULATE_AMX=1)
for source in csrc/cpu/isa/*.cpp; do
    isa=${source##*_} isa=${isa%.cpp}
    # shellcheck disable=SC2053
    [[ $isa == $foreign ]] && continue
    kernels+=("$source")
    defines+=("-DMOE_KERNELS_HAVE_${isa^^}=1")
done

object() { echo "$1/$(echo "${2%.cpp}" | tr / _).o"; }

build_all() {
    local folder=$1 sanitizers=$2 source isa flags objects=() program made
    mkdir -p "$folder"
    for source in csrc/common/*.cpp csrc/cpu/*.cpp "${kernels[@]}" tests/native/{every_op,foreign_isa}.cpp; do
        # What an earlier run has built stays, unless any source has changed: headers are not followed.
        made=$(object "$folder" "$source")
        [[ -e $made && -z $(find csrc tests/native CMakeLists.txt scripts/sanitize.sh -newer "$made" -print -quit) ]] &&
            continue
        flags=""
        if [[ $source == csrc/cpu/isa/* ]]; then
            isa=${source##*_} isa=FLAGS_${isa%.cpp}
            flags=${!isa?"$source: CMakeLists.txt has no $isa"}
        fi
        printf '%s\0' "$compiler -std=c++17 -O1 -g -fno-omit-frame-pointer -ffp-contract=fast -fno-math-errno \
            $sanitizers $flags ${defines[*]} -Icsrc -pthread -c $source -o $made"
    done | xargs -0 -P "${JOBS:-$(nproc)}" -I{} bash -c '{}'
    for source in csrc/common/*.cpp csrc/cpu/*.cpp "${kernels[@]}"; do objects+=("$(object "$folder" "$source")"); done
    for program in every_op foreign_isa; do
        # shellcheck disable=SC2086
        "$compiler" $sanitizers -pthread "${objects[@]}" "$(object "$folder" "tests/native/$program.cpp")" \
            -o "$folder/$program"
    done
}

run_all() {
    local folder=$1 isa program
    for isa in $("$folder/every_op" --list); do
        for program in every_op foreign_isa; do
            printf '%s, %s, %s: ' "$(basename "$folder")" "$isa" "$program"
            MOE_KERNELS_ISA=$isa "$folder/$program" | tail -n 1
        done
    done
}

export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
# An empty tensor has a null address, and setting no bytes there is harmless, whatever the attribute says.
build_all "$build/address" "-fsanitize=address,undefined -fno-sanitize=nonnull-attribute -fno-sanitize-recover=all"
run_all "$build/address"
build_all "$build/thread" "-fsanitize=thread"
run_all "$build/thread"
