// The threads of an OpenMP runtime that the process has anyway, torch's, as a place to run tasks.
//
// They spin for a while after each of torch's operations, on the cores that workers of our own would need: in the
// middle of a model those came late. What runs on torch's own threads meets them awake.
#pragma once

#include <cstdint>

#include "thread_pool.h"

namespace moe {

// GOMP_parallel, which libgomp, LLVM's and Intel's runtimes share: body(data) on each of the team's threads, the caller
// among them; 0 threads are as many as the runtime was told, and so always the same team.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Run tasks there from now on; nullptr gives the team back. A forked child has none: its threads were not forked.
void borrow_team(ParallelRegion region);

// Runs the tasks on at most `threads` of the team's threads, or returns false where no team is borrowed.
bool run_on_team(int64_t count, int threads, TaskFunction task, void* context);

}  // namespace moe
