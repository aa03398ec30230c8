// A batch of copies between a bench's staging memory and the device, each direction by the same
// arrays.
#pragma once

#include "bench.h"

namespace gpupool {

struct BatchOf {
  void add(DevicePtr at, std::byte* memory, std::size_t bytes) {
    device.push_back(at);
    host.push_back(memory);
    sizes.push_back(bytes);
  }
  Status to_device(Driver& driver, StreamHandle stream) const {
    return driver.copy_batch_to_device(device.data(), host.data(), sizes.data(), sizes.size(),
                                       stream);
  }
  Status to_host(Driver& driver, StreamHandle stream) const {
    return driver.copy_batch_to_host(host.data(), device.data(), sizes.data(), sizes.size(),
                                     stream);
  }
  std::vector<DevicePtr> device;
  std::vector<void*> host;
  std::vector<std::size_t> sizes;
};

}  // namespace gpupool
