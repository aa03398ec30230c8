// What differs between a real GPU and the stand-in library of these tests.
#pragma once

#include <dlfcn.h>

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

// Whether main() keeps the primary context of a GPU for as long as the program runs: to make one
// is slow, every driver that a test opens would make another, and the last that
// lets go of it has it reset.
inline bool& keeps_a_context() {
  static bool keeps = true;
  return keeps;
}
// Of a program whose tests are about contexts.
struct KeepsNoContext {
  KeepsNoContext() { keeps_a_context() = false; }
};

}  // namespace gpupool
