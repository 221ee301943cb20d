// The emulated block itself: what each primitive gives, and that wrong kernels are caught.
// Exit status 0 when all is as expected; otherwise one line for each difference.
#include <cstdio>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernel.h"

using moe::emulate::Order;

static int failures = 0;

static void expect(bool ok, const char* what) {
  if (ok) return;
  ++failures;
  std::printf("%s\n", what);
}

static void expect_failure(const char* what, const char* text, const std::function<void()>& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    if (std::string(error.what()).find(text) != std::string::npos) return;
    ++failures;
    std::printf("%s: expected '%s', got '%s'\n", what, text, error.what());
    return;
  }
  expect(false, what);
}

// Sum of a block by warps, then of the warps: shuffles, shared memory, a barrier.
static __global__ void sum_kernel(const int* in, int* out) {
  MOE_SHARED(int, partial, [32]);
  int sum = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned i = 1; i < blockDim.x / 32; ++i) sum += partial[i];
    out[blockIdx.x] = sum;
  }
}

static __global__ void reverse_kernel(float* x, bool barrier) {
  MOE_DYNAMIC_SHARED(bytes);
  auto* shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  x[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

static __global__ void lanes_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  unsigned* mine = out + lane * 10;
  mine[0] = __shfl_xor_sync(0xffffffffu, lane, 5);
  mine[1] = __shfl_up_sync(0xffffffffu, lane, 3);
  mine[2] = __shfl_sync(0xffffffffu, lane, static_cast<int>(lane * 7 % 32));
  mine[3] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  mine[4] = __reduce_add_sync(0xffffffffu, lane);
  mine[5] = __match_any_sync(0xffffffffu, lane % 4);
  mine[6] = __shfl_down_sync(0xffffffffu, lane, 2, 8);
  mine[7] = static_cast<unsigned>(__any_sync(0xffffffffu, lane == 31));
  // Both halves of the warp apart.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  mine[8] = __reduce_max_sync(half, lane);
  mine[9] = static_cast<unsigned>(__syncthreads_count(lane % 2));
}

// A producer warp and three consumer warps, with named barriers and a copy that takes as long as it may.
static __global__ void pipeline_kernel(const int* in, int* out, int steps, bool wait) {
  MOE_SHARED(int, buffer, [32]);
  MOE_SHARED(int, copied);
  if (threadIdx.x == 0) copied = 0;
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    if (threadIdx.x < 32) {
      if (step > 0) moe::emulate::barrier_sync(2, 128);
      if (threadIdx.x == 0)
        moe::emulate::later([=] {
          for (int i = 0; i < 32; ++i) buffer[i] = in[step * 32 + i];
          copied = step + 1;
        });
    } else {
      if (wait) moe::emulate::block_until("the copy", [&] { return copied == step + 1; });
      if (threadIdx.x < 64) out[step * 32 + threadIdx.x - 32] = buffer[threadIdx.x - 32];
      if (step + 1 < steps) moe::emulate::barrier_arrive(2, 128);
    }
  }
}

static __global__ void warpgroup_kernel(int* out) {
  struct Mine {
    int value, sum;
  } mine{static_cast<int>(threadIdx.x), 0};
  moe::emulate::warpgroup_collective("sum", mine, [](Mine** threads) {
    int sum = 0;
    for (int i = 0; i < 128; ++i) sum += threads[i]->value;
    for (int i = 0; i < 128; ++i) threads[i]->sum = sum;
  });
  out[threadIdx.x] = mine.sum;
}

static __global__ void unset_kernel(float* out) {
  MOE_SHARED(float, value, [32]);
  out[threadIdx.x] = value[threadIdx.x];
}

static __global__ void some_lanes_kernel(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}

static __global__ void parted_kernel(int* out) {
  if (threadIdx.x < 16) {
    out[0] = __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    __syncthreads();
  }
}

static __global__ void different_kernel() {
  if (threadIdx.x < 16)
    __syncwarp();
  else
    __ballot_sync(0xffffffffu, true);
}

template <typename... P, typename... A>
static void run(dim3 grid, dim3 block, size_t shared, void (*kernel)(P...), A... arguments) {
  moe::cuda::launch("kernel", kernel, grid, block, shared, nullptr, arguments...);
}

static void check_right_kernels() {
  std::vector<int> in(3 * 256), out(3, -1);
  std::iota(in.begin(), in.end(), 0);
  run(3, 256, 0, sum_kernel, in.data(), out.data());
  for (int i = 0; i < 3; ++i)
    expect(out[i] == std::accumulate(in.begin() + i * 256, in.begin() + i * 256 + 256, 0), "sum");

  std::vector<float> x(96);
  std::iota(x.begin(), x.end(), 0.0f);
  run(1, 96, 96 * 4, reverse_kernel, x.data(), true);
  for (int i = 0; i < 96; ++i) expect(x[i] == static_cast<float>(95 - i), "reverse");

  std::vector<unsigned> lanes(32 * 10);
  run(1, 32, 0, lanes_kernel, lanes.data());
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned* got = lanes.data() + i * 10;
    expect(got[0] == (i ^ 5), "shfl_xor");
    expect(got[1] == (i < 3 ? i : i - 3), "shfl_up");
    expect(got[2] == i * 7 % 32, "shfl");
    expect(got[3] == 0x49249249u, "ballot");
    expect(got[4] == 496, "reduce_add");
    expect(got[5] == 0x11111111u << i % 4, "match_any");
    expect(got[6] == (i % 8 < 6 ? i + 2 : i), "shfl_down in segments");
    expect(got[7] == 1, "any");
    expect(got[8] == (i < 16 ? 15u : 31u), "reduce_max of half a warp");
    expect(got[9] == 16, "syncthreads_count");
  }

  std::vector<int> source(5 * 32), target(5 * 32, -1);
  std::iota(source.begin(), source.end(), 7);
  run(1, 128, 0, pipeline_kernel, source.data(), target.data(), 5, true);
  expect(source == target, "pipeline");

  std::vector<int> sums(256);
  run(1, 256, 0, warpgroup_kernel, sums.data());
  expect(sums[0] == 8128 && sums[127] == 8128 && sums[128] == 24512 && sums[255] == 24512, "warpgroup");
}

static void check_wrong_kernels() {
  std::vector<float> x(96, 0.0f);
  run(1, 96, 96 * 4, reverse_kernel, x.data(), false);
  expect(std::isnan(x[0]), "a missing barrier shows as NaN in the threads that come first");
  run(1, 32, 0, unset_kernel, x.data());
  expect(std::isnan(x[0]) && std::isnan(x[31]), "shared memory that nobody wrote is NaN");
  std::vector<int> source(32, 1), target(32, 0);
  run(1, 128, 0, pipeline_kernel, source.data(), target.data(), 1, false);
  expect(target[0] == -1, "a copy that nobody waits for has not arrived");

  expect_failure("a lane that has ended", "lacks 1\n  1 threads have ended",
                 [&] { run(1, 32, 0, some_lanes_kernel, target.data()); });
  expect_failure("lanes that never meet", "__shfl_xor_sync of threads 0 to 31 lacks 16",
                 [&] { run(1, 32, 0, parted_kernel, target.data()); });
  expect_failure("lanes at different places", "other threads of the group are at",
                 [] { run(1, 32, 0, different_kernel); });
  expect_failure("half a warp", "the block has no thread 16", [&] { run(1, 16, 0, some_lanes_kernel, target.data()); });
  expect_failure("dynamic shared memory", "a write behind the dynamic shared memory",
                 [&] { run(1, 96, 95 * 4, reverse_kernel, x.data(), true); });
}

int main() {
  for (Order order : {Order::ascending, Order::descending, Order::shuffled}) {
    moe::emulate::set_order(order, 1);
    check_right_kernels();
  }
  moe::emulate::set_order(Order::ascending);
  check_wrong_kernels();
  std::printf("%d differences\n", failures);
  return failures == 0 ? 0 : 1;
}
