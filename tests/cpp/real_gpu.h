// Whether a test runs on a real GPU. What cuda.h leaves undefined, or promises nothing of, is asked
// of the host driver and of the stand-in library alone: a driver may crash over it, or fault later.
#pragma once

#include <dlfcn.h>

#include <cstdio>

#include "devices.h"
#include "standin/standin.h"

namespace gpupool {

// The look into the stand-in library; null where libcuda.so.1 is a real one, or there is none.
inline const standin::Control* stand_in() {
  static const standin::Control* const found = []() -> const standin::Control* {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    void* get = library == nullptr ? nullptr : dlsym(library, standin::control_name);
    return get == nullptr ? nullptr : reinterpret_cast<standin::GetControl>(get)();
  }();
  return found;
}

// On a real GPU: prints what is left out there, and why.
inline bool left_out_on_a_gpu(const char* what_and_why) {
  if (test_driver_name() != "cuda" || stand_in() != nullptr) return false;
  std::printf("left out on a GPU: %s\n", what_and_why);
  return true;
}

// Whether main() keeps the primary context of a GPU for as long as the program runs: to make one
// is slow, every driver that a test opens would make another, and the last that lets go of it has
// it reset.
inline bool& keeps_a_context() {
  static bool keeps = true;
  return keeps;
}
// Of a program whose tests are about contexts.
struct KeepsNoContext {
  KeepsNoContext() { keeps_a_context() = false; }
};

}  // namespace gpupool
