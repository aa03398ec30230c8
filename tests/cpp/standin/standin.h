// What a test can ask of the stand-in libcuda.so.1, and make it do. The library itself behaves as
// the CUDA driver of a machine with two devices and forwards to the host driver.
//
// The environment sets, for a process as a whole:
//   GPUPOOL_STANDIN_VERSION  the CUDA version of the driver, as cuda.h writes it; 13000 is default
//   GPUPOOL_STANDIN_WITHOUT  a call that cuGetProcAddress does not find, or all
//   GPUPOOL_STANDIN_LOOKUP   a call for which cuGetProcAddress fails, or all
//   GPUPOOL_STANDIN_FAIL     a call that always answers CUDA_ERROR_NO_DEVICE
#pragma once

#include <cstdint>

namespace gpupool::standin {

inline constexpr int devices = 2;

// What the library holds now, all devices together.
struct Held {
  std::uint64_t contexts;      // retained at least once more than released
  std::uint64_t retains;       // not yet released
  std::uint64_t pages;         // handles
  std::uint64_t reservations;  // these and all below belong to a context
  std::uint64_t mappings;
  std::uint64_t registrations;
  std::uint64_t streams;
  std::uint64_t events;
  std::uint64_t modules;
  bool operator==(const Held&) const = default;
};

struct Control {
  Held (*held)();
  std::uint64_t (*contexts_made)();  // ever
  std::uint64_t (*left_behind)();    // things that went with their context, ever
  std::uint64_t (*calls)(const char* name);
  // The nth call of `name` from now, or of any call when null, answers `code` and does nothing
  // else; with `persistent` so do all after it. 0 as nth: none does.
  void (*fail)(const char* name, std::uint64_t nth, int code, bool persistent);
  std::uint64_t (*injected)();     // since fail()
  const char* (*last_injected)();  // the call, or null
  // As a new process finds it: no plan to fail, no context, nothing held. No driver may be open.
  void (*forget)();
  // A context that nobody but the caller knows, as another library in the process may have one.
  void* (*make_context)();
  void (*destroy_context)(void* context);
  // A capture of a graph begins in a thread that nobody sees, in the mode that others may break;
  // whether none did.
  void (*begin_capture)();
  bool (*end_capture)();
  // What a call was last asked for: flags, or the alignment of a reservation.
  std::uint64_t (*last_asked)(const char* name);
};

// Exported under this name.
inline constexpr const char* control_name = "gpupool_standin_control";
using GetControl = const Control* (*)();

}  // namespace gpupool::standin
