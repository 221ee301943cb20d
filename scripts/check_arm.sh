#!/usr/bin/env bash
# The kernels for 64-bit ARM on another machine: cross-compiled, then run under QEMU's user mode, with NEON and without.
# Installs nothing. On Debian the tools are the packages g++-aarch64-linux-gnu and qemu-user (or qemu-user-static).
# Exits with 77 where a tool is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=$(command -v "${ARM_CXX:-aarch64-linux-gnu-g++}" || true)
emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
if [ -z "$compiler" ] || [ -z "$emulator" ]; then
    [ -n "$compiler" ] || echo "check_arm: no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)"
    [ -n "$emulator" ] || echo "check_arm: no qemu-aarch64 (Debian: qemu-user)"
    exit 77
fi

build=build/check_arm
mkdir -p "$build"
for program in every_op foreign_isa; do
    "$compiler" -std=c++17 -O3 -ffp-contract=fast -fno-math-errno -Wall -Wextra -static -pthread \
        -DMOE_KERNELS_HAVE_NEON=1 -DMOE_KERNELS_HAVE_SCALAR=1 -Icsrc \
        csrc/common/*.cpp csrc/cpu/*.cpp csrc/cpu/isa/kernels_neon.cpp csrc/cpu/isa/kernels_scalar.cpp \
        "tests/native/$program.cpp" -o "$build/$program"
    for isa in neon scalar; do
        printf 'aarch64, %s, %s: ' "$isa" "$program"
        MOE_KERNELS_ISA=$isa "$emulator" "$build/$program" | tail -n 1
    done
done
