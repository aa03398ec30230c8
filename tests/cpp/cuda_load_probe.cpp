// Opens the CUDA driver as a program of its own would, and prints what came of it.
#include <cstdio>
#include <exception>

#include "driver/driver.h"

int main() {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      const auto driver = gpupool::open_cuda_driver(0);
      std::size_t bytes = 0;
      GPUPOOL_CALL(driver, page_granularity, &bytes);
      std::printf("open\n");
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
    }
  }
}
