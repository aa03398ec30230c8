#include <cstdio>
#include <cstdlib>

#include "check.h"
#include "devices.h"
#include "real_gpu.h"

std::vector<check::Test>& check::tests() {
  static std::vector<Test> all;
  return all;
}

namespace {

constexpr int skipped = 77;

// Runs every test once, or until one fails; the number that failed.
int run_all(bool quiet) {
  const bool stop = gpupool::setting("GPUPOOL_TEST_STOP", "0") == "1";
  int failed = 0;
  for (const auto& [name, body] : check::tests()) {
    try {
      body();
      if (!quiet) std::printf("ok      %s\n", name);
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED  %s\n        %s\n", name, error.what());
    }
    std::fflush(stdout);
    if (failed > 0 && stop) break;
  }
  return failed;
}

}  // namespace

int main() {
  const std::string driver = gpupool::test_driver_name();
  gpupool::DriverPtr kept;
  try {
    kept = gpupool::open_bare_test_driver();
  } catch (const std::runtime_error& error) {
    if (driver != "cuda") throw;
    std::printf("skipped on %s: %s\n", driver.c_str(), error.what());
    return skipped;
  }
  const bool one_context = driver == "cuda" && gpupool::keeps_a_context();
  if (one_context) {
    GPUPOOL_CALL(kept, context_synchronize);
  } else {
    kept.reset();
  }
  // Schedules differ from round to round where the driver draws them.
  const int rounds = std::stoi(gpupool::setting("GPUPOOL_TEST_ROUNDS", "1"));
  int failed = 0;
  for (int round = 0; round < rounds && failed == 0; ++round) failed = run_all(round > 0);
  const int passed = static_cast<int>(check::tests().size()) - failed;
  std::printf("%s: %d tests passed, %d failed, %d checks, %d rounds\n", driver.c_str(), passed,
              failed, check::sites().load(), rounds);
  if (failed == 0 && check::sites() < check::sites_min()) {
    std::printf("FAILED  only %d checks were made, of %d at least\n", check::sites().load(),
                check::sites_min());
    return 1;
  }
  if (gpupool::unwritten_reads() > 0) {
    std::printf("FAILED  %d reads of what was never written\n", gpupool::unwritten_reads().load());
    return 1;
  }
  const auto* library = one_context ? gpupool::stand_in() : nullptr;
  if (library != nullptr && library->contexts_made() != 1) {
    std::printf("FAILED  %llu contexts were made, and not one for all tests\n",
                static_cast<unsigned long long>(library->contexts_made()));
    return 1;
  }
  return failed == 0 ? 0 : 1;
}
