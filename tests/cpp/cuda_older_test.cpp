// The CUDA driver over the stand-in as a driver of CUDA 12.8, whose batches of copies have another
// form. The library is loaded once in a process: this program is one of its own.
#include <cstdlib>

#include "batch_bench.h"
#include "cuda_bench.h"

using namespace gpupool;

static const KeepsNoContext keeps_no_context;

namespace {
// Before anything looks the calls up.
const int older = setenv("GPUPOOL_STANDIN_VERSION", "12080", 1);
}  // namespace

TEST(a_batch_of_cuda_12_8_moves_its_bytes) {
  CHECK_EQ(older, 0);
  void* newer = &newer;
  const auto find = reinterpret_cast<cuda::GetProcAddress>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuGetProcAddress_v2"));
  CHECK_EQ(find("cuMemcpyBatchAsync", &newer, 13000, 0, nullptr), 1);
  Bench bench(open_cuda_driver(0));
  const DevicePtr base = bench.mapped(1);
  const Bytes content = pattern(2, 8192);
  bench.write(base, content);
  BatchOf out, in;
  for (std::size_t i = 0; i < 4; ++i) {
    out.add(base + i * 2048, bench.staging() + (3 - i) * 2048, 2048);
    in.add(base + 8192 + i * 2048, bench.staging() + (3 - i) * 2048, 2048);
  }
  CHECK_OK(out.to_host(*bench.driver(), bench.stream()));
  CHECK_OK(in.to_device(*bench.driver(), bench.stream()));
  CHECK(bench.read(base + 8192, 8192) == content);
  CHECK_EQ(control().calls("cuMemcpyBatchAsync"), 2);
}

TEST(a_status_of_a_batch_of_cuda_12_8_is_the_answer) {
  for (const char* seam : {"copy_batch_to_device", "copy_batch_to_host"}) {
    control().forget();
    const DriverPtr driver = open_cuda_driver(0);
    const bool second = std::string(seam) == "copy_batch_to_host";
    control().fail("cuMemcpyBatchAsync", second ? 2 : 1, 719, false);
    for (const Answer& answer : call_everything(*driver)) {
      CHECK_EQ(static_cast<int>(answer.status), std::string(answer.call) == seam ? 719 : 0);
    }
    CHECK_EQ(control().injected(), 1);
  }
}
