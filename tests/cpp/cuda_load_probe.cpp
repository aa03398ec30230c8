// Opens the CUDA driver as a program of its own would, and prints what came of it; with an argument
// also what it says to a batch of copies of nothing.
#include <cstdio>
#include <exception>

#include "driver/driver.h"

int main(int count, char**) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      const auto driver = gpupool::open_cuda_driver(0);
      std::size_t bytes = 0;
      GPUPOOL_CALL(driver, page_granularity, &bytes);
      std::printf("open\n");
      if (count == 1) continue;
      const auto status = driver->copy_batch_to_host(nullptr, nullptr, nullptr, 0, nullptr);
      std::printf("%s\n", driver->status_name(status).c_str());
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
    }
  }
}
