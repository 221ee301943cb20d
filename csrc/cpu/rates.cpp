#include "rates.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "common/cpu_features.h"
#include "common/error.h"
#include "common/thread_pool.h"

namespace moe {
namespace {

// GCC's and Clang's own vectors: 16 bytes are a register on every processor of interest.
typedef float Floats __attribute__((vector_size(16)));
typedef int64_t Words __attribute__((vector_size(16), may_alias));

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// One task's share, and the streams it is read as. On Zen 4 one or two streams are the fastest, eight a tenth slower.
constexpr int64_t SHARE = int64_t{4} << 20;
constexpr int STREAMS = 2;

int64_t read_share(const char* data) {
  constexpr int64_t LENGTH = SHARE / STREAMS;
  Words sums[STREAMS] = {};
  for (int64_t at = 0; at < LENGTH; at += 64) {
    for (int stream = 0; stream < STREAMS; ++stream) {
      const Words* line = reinterpret_cast<const Words*>(data + stream * LENGTH + at);
      sums[stream] ^= (line[0] ^ line[1]) ^ (line[2] ^ line[3]);
    }
  }
  Words sum = {};
  for (const Words& part : sums) sum ^= part;
  return sum[0] ^ sum[1];
}

// Each loop below runs `steps` times over its registers: as many independent chains as hide an instruction's latency,
// all of them in registers. The whole loop is assembly, so that no compiler option can change what is measured.
using Loop = void (*)(int64_t steps);

struct Product {
  const char* kind;
  bool usable;
  double operations;  // of one step
  Loop loop;
};

constexpr int SCALAR_CHAINS = 12;

void scalar_loop(int64_t steps) {
  Floats sums[SCALAR_CHAINS];
  Floats factor = {1.0f, 1.0f, 1.0f, 1.0f}, term = {1e-9f, 1e-9f, 1e-9f, 1e-9f};
  for (Floats& sum : sums) sum = term;
  asm volatile("" : "+m"(factor), "+m"(term));  // unknown to the compiler from here on
  const Floats a = factor, b = term;
  for (int64_t i = 0; i < steps; ++i)
    for (Floats& sum : sums) sum = sum * a + b;
  asm volatile("" ::"m"(sums));
}

#define SIXTEEN(line, argument)                                                                                     \
  line(argument, 0) line(argument, 1) line(argument, 2) line(argument, 3) line(argument, 4) line(argument, 5)       \
      line(argument, 6) line(argument, 7) line(argument, 8) line(argument, 9) line(argument, 10) line(argument, 11) \
          line(argument, 12) line(argument, 13) line(argument, 14) line(argument, 15)

#if defined(__x86_64__)

// What is multiplied: finite and not denormal in each of the formats.
alignas(64) constexpr float FACTORS[2] = {1.0f, 1e-3f};

#define STEP_ZMM(instruction, n) instruction " %%zmm30, %%zmm31, %%zmm" #n "\n\t"
#define CLEAR_ZMM(_, n) "vpxord %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n\t"
#define ZMM_LOOP(name, features, instruction)                                                              \
  __attribute__((target(features))) void name(int64_t steps) {                                             \
    asm volatile("vbroadcastss %1, %%zmm30\n\t"                                                          \
                 "vbroadcastss %2, %%zmm31\n\t" SIXTEEN(CLEAR_ZMM, ) ".p2align 5\n"                      \
                 "1:\n\t" SIXTEEN(STEP_ZMM, instruction) "decq %0\n\t"                                   \
                 "jnz 1b\n\t"                                                                            \
                 "vzeroupper\n\t"                                                                        \
                 : "+r"(steps)                                                                           \
                 : "m"(FACTORS[0]), "m"(FACTORS[1])                                                      \
                 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm30", "xmm31"); \
  }

ZMM_LOOP(avx512_loop, "avx512f", "vfmadd231ps")
#if defined(__clang__) || __GNUC__ >= 10
#define MOE_RATES_BF16 1
ZMM_LOOP(avx512_bf16_loop, "avx512f,avx512bf16", "vdpbf16ps")
#endif
ZMM_LOOP(avx512_vnni_loop, "avx512f,avx512vnni", "vpdpbusd")

#define STEP_YMM(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n\t"
#define CLEAR_YMM(n) "vxorps %%ymm" #n ", %%ymm" #n ", %%ymm" #n "\n\t"
#define TWELVE(line) line(0) line(1) line(2) line(3) line(4) line(5) line(6) line(7) line(8) line(9) line(10) line(11)

__attribute__((target("avx2,fma"))) void avx2_loop(int64_t steps) {
  asm volatile("vbroadcastss %1, %%ymm14\n\t"
               "vbroadcastss %2, %%ymm15\n\t" TWELVE(CLEAR_YMM) ".p2align 5\n"
               "1:\n\t" TWELVE(STEP_YMM) "decq %0\n\t"
               "jnz 1b\n\t"
               "vzeroupper\n\t"
               : "+r"(steps)
               : "m"(FACTORS[0]), "m"(FACTORS[1])
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                 "xmm11", "xmm14", "xmm15");
}

#if defined(__clang__) || __GNUC__ >= 11
#define MOE_RATES_AMX 1

struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Six tiles of sums, as many as leave one for either operand. The compiler keeps nothing in tiles, so there are no
// clobbers to name.
#define STEP_TILE(instruction, n) instruction " %%tmm7, %%tmm6, %%tmm" #n "\n\t"
#define CLEAR_TILE(_, n) "tilezero %%tmm" #n "\n\t"
#define SIX(line, argument) \
  line(argument, 0) line(argument, 1) line(argument, 2) line(argument, 3) line(argument, 4) line(argument, 5)
#define TILE_LOOP(name, features, instruction)                                                                 \
  __attribute__((target(features))) void name(int64_t steps) {                                                 \
    static const TileShapes shapes;                                                                            \
    asm volatile("ldtilecfg %1\n\t" SIX(CLEAR_TILE, ) CLEAR_TILE(, 6) CLEAR_TILE(, 7) ".p2align 5\n"         \
                 "1:\n\t" SIX(STEP_TILE, instruction) "decq %0\n\t"                                         \
                 "jnz 1b\n\t"                                                                               \
                 "tilerelease\n\t"                                                                          \
                 : "+r"(steps)                                                                              \
                 : "m"(shapes)                                                                              \
                 : "cc", "memory"); \
  }

TILE_LOOP(amx_bf16_loop, "amx-tile,amx-bf16", "tdpbf16ps")
TILE_LOOP(amx_int8_loop, "amx-tile,amx-int8", "tdpbssd")
#endif

#elif defined(__aarch64__)

#define STEP_NEON(_, n) "fmla v" #n ".4s, v30.4s, v31.4s\n\t"
#define CLEAR_NEON(_, n) "movi v" #n ".4s, #0\n\t"

void neon_loop(int64_t steps) {
  asm volatile("fmov v30.4s, #1.0\n\t"
               "fmov v31.4s, #0.5\n\t" SIXTEEN(CLEAR_NEON, ) "1:\n\t" SIXTEEN(STEP_NEON, )
               "subs %0, %0, #1\n\t"
               "b.ne 1b\n\t"
               : "+r"(steps)
               :
               : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",
                 "v15", "v30", "v31");
}

#endif

std::vector<Product> products() {
  const CpuFeatures& cpu = cpu_features();
  static_cast<void>(cpu);
  return {
#if defined(MOE_RATES_AMX)
      {"amx_bf16", cpu.amx_bf16, 6 * 16 * 16 * 32 * 2, amx_bf16_loop},
      {"amx_int8", cpu.amx_int8, 6 * 16 * 16 * 64 * 2, amx_int8_loop},
#endif
#if defined(MOE_RATES_BF16)
      {"avx512_bf16", cpu.avx512_bf16, 16 * 32 * 2, avx512_bf16_loop},
#endif
#if defined(__x86_64__)
      {"avx512_vnni", cpu.avx512_vnni, 16 * 64 * 2, avx512_vnni_loop},
      {"avx512", cpu.avx512, 16 * 16 * 2, avx512_loop},
      {"avx2", cpu.avx2, 12 * 8 * 2, avx2_loop},
#elif defined(__aarch64__)
      {"neon", cpu.neon, 16 * 4 * 2, neon_loop},
#endif
      {"scalar", true, SCALAR_CHAINS * 4 * 2, scalar_loop},
  };
}

}  // namespace

double read_rate(const TensorView& buffer, int threads) {
  const int64_t bytes = buffer.numel() * item_size(buffer.dtype);
  if (!buffer.contiguous() || bytes < SHARE)
    throw Error("read_rate: buffer: expected contiguous, of at least " + std::to_string(SHARE) + " bytes, got " +
                describe(buffer));
  std::atomic<int64_t> sink{0};
  const int64_t shares = bytes / SHARE;
  const auto begin = std::chrono::steady_clock::now();
  parallel_for(shares, threads, [&](int64_t share) {
    sink.fetch_xor(read_share(buffer.data + share * SHARE), std::memory_order_relaxed);
  });
  return static_cast<double>(shares * SHARE) / seconds_since(begin);
}

std::vector<std::string> product_kinds() {
  std::vector<std::string> kinds;
  for (const Product& product : products())
    if (product.usable) kinds.push_back(product.kind);
  return kinds;
}

double product_rate(const std::string& kind, int threads) {
  std::string names;
  for (const Product& product : products()) {
    if (!product.usable) continue;
    names += (names.empty() ? "" : ", ") + std::string(product.kind);
    if (kind != product.kind) continue;
    // About a millisecond a task, found on one thread; then enough tasks for the threads to end together.
    int64_t steps = 1024;
    for (double seconds = 0.0; seconds < 1e-3; steps *= 2) {
      const auto begin = std::chrono::steady_clock::now();
      product.loop(steps);
      seconds = seconds_since(begin);
    }
    const int64_t tasks = 48 * std::max(threads, 1);
    const auto begin = std::chrono::steady_clock::now();
    parallel_for(tasks, threads, [&](int64_t) { product.loop(steps); });
    return product.operations * static_cast<double>(steps) * static_cast<double>(tasks) / seconds_since(begin);
  }
  throw Error("product_rate: kind: expected one of " + names + ", got '" + kind + "'");
}

}  // namespace moe
