// What a user is told when the CUDA driver cannot be used: each case in a process of its own,
// which tries twice, since a failed load is remembered.
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <memory>

#include "check.h"
#include "driver/cuda_abi.h"

namespace {

std::string probe(const std::string& environment, const char* argument = "") {
  const std::string command =
      "env -u GPUPOOL_TEST_DRIVER " + environment + " " + PROBE + " " + argument;
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string output;
  for (std::array<char, 4096> part; std::fgets(part.data(), part.size(), pipe.get());) {
    output += part.data();
  }
  return output;
}

std::string twice(const std::string& line) { return line + "\n" + line + "\n"; }

std::string in(const char* folder) {
  return std::string("LD_LIBRARY_PATH=") + STANDIN_DIRECTORY + "/" + folder;
}

}  // namespace

TEST(a_whole_library_opens) { CHECK_EQ(probe(in("whole")), twice("open")); }

TEST(a_missing_library_is_named) {
  if (void* real = dlopen("libcuda.so.1", RTLD_LAZY)) {
    dlclose(real);
    std::printf("skipped a_missing_library_is_named: this machine has a libcuda.so.1\n");
    return;
  }
  const std::string seen = probe("LD_LIBRARY_PATH=");
  CHECK(
      seen.starts_with("libcuda.so.1 was not found: install the NVIDIA driver, or use device "
                       "'host' to run without a GPU"));
}

TEST(a_library_that_does_not_load_is_told_from_a_missing_one) {
  const std::string seen = probe(in("broken"));
  CHECK(seen.starts_with("libcuda.so.1 could not be loaded ("));
  CHECK(seen.find("broken/libcuda.so.1") != std::string::npos);  // which one it was
}

TEST(a_driver_of_before_cuda_12_is_too_old) {
  CHECK_EQ(probe(in("too_old")),
           twice("the NVIDIA driver is too old: CUDA 12.0 or newer is needed"));
}

TEST(every_call_that_is_missing_is_named) {
#define WITHOUT(name, version, params)                             \
  CHECK_EQ(probe(in("whole") + " GPUPOOL_STANDIN_WITHOUT=" #name), \
           twice("the NVIDIA driver has no " #name ": CUDA 12.0 or newer is needed"));
  GPUPOOL_CUDA_SYMBOLS(WITHOUT)
#undef WITHOUT
  const std::string first = twice("the NVIDIA driver has no cuInit: CUDA 12.0 or newer is needed");
  CHECK_EQ(probe(in("whole") + " GPUPOOL_STANDIN_WITHOUT=all"), first);
  CHECK_EQ(probe(in("whole") + " GPUPOOL_STANDIN_LOOKUP=all"), first);
}

TEST(a_driver_of_before_cuda_12_8_opens_and_has_no_batches) {
  const std::string none = twice("open\nCUDA_ERROR_NOT_SUPPORTED");
  const std::string refused = twice("open\nCUDA_ERROR_INVALID_VALUE");  // by the library
  const auto ask = [](const char* more) { return probe(in("whole") + " " + more, "batch"); };
  CHECK_EQ(ask(""), refused);
  CHECK_EQ(ask("GPUPOOL_STANDIN_VERSION=12080"), refused);
  CHECK_EQ(ask("GPUPOOL_STANDIN_VERSION=12070"), none);
  CHECK_EQ(ask("GPUPOOL_STANDIN_VERSION=12000"), none);
  CHECK_EQ(ask("GPUPOOL_STANDIN_WITHOUT=cuMemcpyBatchAsync"), none);
  CHECK_EQ(ask("GPUPOOL_STANDIN_LOOKUP=cuMemcpyBatchAsync"), none);
}

TEST(a_driver_that_does_not_start_is_reported_by_its_own_name) {
  CHECK_EQ(probe(in("whole") + " GPUPOOL_STANDIN_FAIL=cuInit"),
           twice("cuInit failed: CUDA_ERROR_NO_DEVICE"));
  CHECK_EQ(probe(in("whole") + " GPUPOOL_STANDIN_FAIL=cuDeviceGet"),
           twice("cuDeviceGet failed: CUDA_ERROR_NO_DEVICE"));
  CHECK_EQ(probe(in("whole") + " GPUPOOL_STANDIN_FAIL=cuMemGetAllocationGranularity"),
           twice("page_granularity failed: CUDA_ERROR_NO_DEVICE"));
}
