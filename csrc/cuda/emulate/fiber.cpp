#include "cuda/emulate/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

// swapcontext also saves the signal mask, by a system call: too slow for a switch at every shuffle of every thread.
#if defined(__x86_64__) && !defined(MOE_EMULATE_UCONTEXT)
#define MOE_SWITCH_IN_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

namespace moe::emulate {
namespace {

// Stacks are taken from the system, so that only the pages that are touched cost memory.
void* take_stack() {
  void* stack = mmap(nullptr, Fiber::STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  // A stack that overflows faults at once instead of writing into its neighbour.
  mprotect(stack, 4096, PROT_NONE);
  return stack;
}

}  // namespace

#ifdef MOE_SWITCH_IN_ASSEMBLY

// Saves the registers that a call preserves and the stack pointer to *from, and takes those of `to`.
extern "C" void moe_emulate_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.local moe_emulate_switch
.type moe_emulate_switch, @function
moe_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size moe_emulate_switch, . - moe_emulate_switch
)");

struct Fiber::Context {
  void* stack = take_stack();
  void* inside = nullptr;
  void* outside = nullptr;
  static thread_local Fiber* starting;
  static void enter() { Fiber::run(starting); }
};
thread_local Fiber* Fiber::Context::starting = nullptr;

void Fiber::start(void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  ended_ = false;
  // As if the switch had been called at the first instruction of `enter`: six registers, then the return address, then
  // a word in the place of that of `enter`'s caller, which leaves the stack aligned as the ABI says.
  void** top = reinterpret_cast<void**>(static_cast<char*>(context_->stack) + STACK_BYTES);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Context::enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context_->inside = top;
}

void Fiber::resume() {
  Context::starting = this;
  moe_emulate_switch(&context_->outside, context_->inside);
}

void Fiber::suspend() { moe_emulate_switch(&context_->inside, context_->outside); }

#else

struct Fiber::Context {
  void* stack = take_stack();
  ucontext_t inside;
  ucontext_t outside;
  static thread_local Fiber* starting;
  static void enter() { Fiber::run(starting); }
};
thread_local Fiber* Fiber::Context::starting = nullptr;

void Fiber::start(void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  ended_ = false;
  getcontext(&context_->inside);
  context_->inside.uc_stack.ss_sp = context_->stack;
  context_->inside.uc_stack.ss_size = STACK_BYTES;
  context_->inside.uc_link = nullptr;
  makecontext(&context_->inside, &Context::enter, 0);
}

void Fiber::resume() {
  Context::starting = this;
  swapcontext(&context_->outside, &context_->inside);
}

void Fiber::suspend() { swapcontext(&context_->inside, &context_->outside); }

#endif

void Fiber::run(Fiber* fiber) {
  fiber->body_(fiber->argument_);
  fiber->ended_ = true;
  fiber->suspend();
  std::abort();
}

Fiber::Fiber() : context_(std::make_unique<Context>()) {}
Fiber::~Fiber() { munmap(context_->stack, STACK_BYTES); }

}  // namespace moe::emulate
