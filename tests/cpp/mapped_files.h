// What of files this process has mapped.
#pragma once

#include <cstddef>
#include <fstream>
#include <string>

namespace gpupool {

// How many of its mappings are of a memfd whose name begins so.
inline std::size_t memfds_mapped(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("/memfd:" + name) != std::string::npos;
  }
  return count;
}

}  // namespace gpupool
