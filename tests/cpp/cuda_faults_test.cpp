// Every call of the CUDA library fails in turn: the driver passes the status on unchanged, puts
// the caller's context back and keeps nothing.
#include <map>
#include <set>

#include "cuda_bench.h"

using namespace gpupool;
using standin::Held;

namespace {

// Which call of the seam answers for a call of the library; the others come with every call that
// needs a context, or are not reached through the table.
const std::map<std::string, std::string> seam_of = {
    {"cuMemGetInfo", "memory_info"},
    {"cuCtxSynchronize", "context_synchronize"},
    {"cuMemGetAllocationGranularity", "page_granularity"},
    {"cuMemCreate", "page_create"},
    {"cuMemRelease", "page_release"},
    {"cuMemExportToShareableHandle", "page_export"},
    {"cuMemImportFromShareableHandle", "page_import"},
    {"cuMemAddressReserve", "address_reserve"},
    {"cuMemAddressFree", "address_free"},
    {"cuMemMap", "map"},
    {"cuMemUnmap", "unmap"},
    {"cuMemSetAccess", "set_access"},
    {"cuMemHostRegister", "host_register"},
    {"cuMemHostUnregister", "host_unregister"},
    {"cuStreamCreate", "stream_create"},
    {"cuStreamDestroy", "stream_destroy"},
    {"cuStreamSynchronize", "stream_synchronize"},
    {"cuStreamWaitEvent", "stream_wait_event"},
    {"cuEventCreate", "event_create"},
    {"cuEventDestroy", "event_destroy"},
    {"cuEventRecord", "event_record"},
    {"cuEventQuery", "event_query"},
    {"cuEventSynchronize", "event_synchronize"},
    {"cuMemcpyHtoDAsync", "copy_to_device"},
    {"cuMemcpyDtoHAsync", "copy_to_host"},
    {"cuMemcpyBatchAsync", "copy_batch_to_device"},
    {"cuMemsetD8Async", "fill"},
    {"cuModuleLoadData", "digest"},
    {"cuModuleGetFunction", "digest"},
    {"cuMemHostGetDevicePointer", "digest"},
    {"cuLaunchKernel", "digest"},
    // Comes first in every call.
    {"cuThreadExchangeStreamCaptureMode", "page_granularity"},
    // The first call that needs a context is the one that retains it and makes it current.
    {"cuDevicePrimaryCtxRetain", "memory_info"},
    {"cuCtxGetCurrent", "memory_info"},
    {"cuCtxSetCurrent", "memory_info"},
};
const std::set<std::string> at_open = {"cuInit", "cuDeviceGet"};
const std::set<std::string> unreported = {"cuGetErrorName", "cuDevicePrimaryCtxRelease",
                                          "cuModuleUnload"};
// Calls that give something back: what such a call was refused, the library still holds.
const std::set<std::string> releases = {
    "cuMemRelease",
    "cuMemAddressFree",
    "cuMemUnmap",
    "cuMemHostUnregister",
    "cuStreamDestroy",
    "cuEventDestroy",
    "cuModuleUnload",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxRelease",
    "cuThreadExchangeStreamCaptureMode",
};

// Outputs point at something; everything else is zero.
template <typename... Parameters>
Status no_arguments(Status (Driver::*call)(Parameters...) noexcept, Driver& driver) {
  static std::uint64_t out[2];
  return (driver.*call)([] {
    if constexpr (std::is_pointer_v<Parameters>) {
      return reinterpret_cast<Parameters>(out);
    } else {
      return Parameters{};
    }
  }()...);
}

constexpr Status codes[] = {Status::unknown, Status::out_of_memory, static_cast<Status>(719)};

}  // namespace

TEST(a_status_of_the_library_is_the_answer_of_the_call) {
  std::vector<std::string> all;
#define NAME(name, version, params) all.push_back(#name);
  GPUPOOL_CUDA_SYMBOLS(NAME)
#undef NAME
  all.emplace_back("cuMemcpyBatchAsync");
  for (const std::string& name : all) {
    if (unreported.contains(name)) continue;
    for (const Status code : codes) {
      control().forget();
      if (at_open.contains(name)) {
        control().fail(name.c_str(), 1, static_cast<int>(code), false);
        try {
          static_cast<void>(open_cuda_driver(0));
          check::fail(__FILE__, __LINE__, "nothing was thrown");
        } catch (const DriverError& error) {
          CHECK_EQ(error.status(), code);
          CHECK_EQ(std::string(error.call()), name);
        }
        CHECK(control().held() == Held{});
        continue;
      }
      CHECK(seam_of.contains(name));
      {
        const DriverPtr driver = open_cuda_driver(0);
        control().fail(name.c_str(), 1, static_cast<int>(code), false);
        const auto answers = call_everything(*driver);
        CHECK_EQ(control().injected(), 1);
        // The first that was not answered with success is the one that failed.
        const auto first = std::find_if(answers.begin(), answers.end(), [](const Answer& answer) {
          return answer.status != Status::success;
        });
        CHECK(first != answers.end());
        CHECK_EQ(std::string(first->call), seam_of.at(name));
        CHECK_EQ(first->status, code);
        // Once more, without a fault: all of it works, unless what is still held is in the way.
        if (!releases.contains(name)) {
          for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
        }
      }
      if (!releases.contains(name)) CHECK(control().held() == Held{});
    }
  }
  control().forget();
}

TEST(a_context_that_cannot_be_entered_is_the_answer_of_every_call_that_needs_one) {
  for (const char* name : {"cuCtxGetCurrent", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"}) {
    control().forget();
    {
      const DriverPtr driver = open_cuda_driver(0);
      control().fail(name, 1, 999, true);
#define ANSWERS(call, params, args, needs_context) \
  if (needs_context) CHECK_EQ(no_arguments(&Driver::call, *driver), Status::unknown);
      GPUPOOL_DRIVER_CALLS(ANSWERS)
#undef ANSWERS
      CHECK(control().injected() > 0);
      CHECK_EQ(control().held().streams + control().held().events, 0);
      control().fail(nullptr, 0, 0, false);
      CHECK_EQ(current_context(), static_cast<void*>(nullptr));
      for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
    }
    CHECK(control().held() == Held{});
  }
  control().forget();
}

TEST(the_nth_call_fails_and_nothing_is_kept) {
  std::uint64_t injections = 0;
  for (const bool persistent : {false, true}) {
    for (const Status code : codes) {
      for (std::uint64_t nth = 1;; ++nth) {
        CHECK(nth < 1000);
        control().forget();
        void* own = control().make_context();
        CHECK_EQ(make_current(own), 0);
        control().fail(nullptr, nth, static_cast<int>(code), persistent);
        bool opened = false;
        try {
          const DriverPtr driver = open_cuda_driver(0);
          opened = true;
          static_cast<void>(call_everything(*driver));
        } catch (const DriverError& error) {
          CHECK(!opened);
          CHECK_EQ(error.status(), code);
        }
        const std::uint64_t injected = control().injected();
        injections += injected;
        const char* failed = control().last_injected();
        control().fail(nullptr, 0, 0, false);
        // What could not be given back is still held, and only that.
        if (failed == nullptr || (!persistent && !releases.contains(failed))) {
          CHECK_EQ(current_context(), own);
          CHECK_EQ(make_current(nullptr), 0);
          control().destroy_context(own);
          CHECK(control().held() == Held{});
        }
        // The next driver works, whatever this one left.
        CHECK_EQ(make_current(nullptr), 0);
        static std::byte elsewhere[4096];
        const DriverPtr driver = open_cuda_driver(0);
        CHECK_OK(driver->host_register(elsewhere, sizeof elsewhere));
        CHECK_OK(driver->host_unregister(elsewhere));
        if (injected == 0) break;
      }
    }
  }
  control().forget();
  CHECK(injections > 300);
}
