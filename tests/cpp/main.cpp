#include <cstdio>

#include "check.h"

std::vector<check::Test>& check::tests() {
  static std::vector<Test> all;
  return all;
}

int main() {
  int failed = 0;
  for (const auto& [name, body] : check::tests()) {
    try {
      body();
      std::printf("ok      %s\n", name);
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED  %s\n        %s\n", name, error.what());
    }
    std::fflush(stdout);
  }
  const int passed = static_cast<int>(check::tests().size()) - failed;
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
