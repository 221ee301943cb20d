// A thread of execution that gives way only when it says so: one CUDA thread of the emulated block.
#pragma once

#include <cstddef>
#include <memory>

namespace moe::emulate {

class Fiber {
 public:
  static constexpr size_t STACK_BYTES = 256 * 1024;

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Begin `body(argument)` anew; what the fiber did before is forgotten. It runs at the next `resume`.
  void start(void (*body)(void*), void* argument);
  // Run until the body calls `suspend` or ends. Called from outside every fiber.
  void resume();
  // Called by the body.
  void suspend();
  bool ended() const { return ended_; }

 private:
  struct Context;
  static void run(Fiber* fiber);

  std::unique_ptr<Context> context_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool ended_ = true;
};

}  // namespace moe::emulate
