// A reservation as a tensor for other libraries, in DLPack's terms.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory/memory.h"

namespace gpupool::dlpack {

// DLPack's structures, as its specification lays them out.
struct Device {
  std::int32_t type;
  std::int32_t id;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  struct {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct ManagedTensor {
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor*);
};

// Since version 1.0, for those who ask for it.
struct VersionedTensor {
  struct {
    std::uint32_t major;
    std::uint32_t minor;
  } version;
  void* manager;
  void (*deleter)(VersionedTensor*);
  std::uint64_t flags;  // none: not read-only, not a copy
  Tensor tensor;
};

// What DLPack calls the device of a driver.
Device device_of(const Driver& driver);

// A tensor of the first `bytes` bytes. The addresses stay reserved until its deleter is called.
ManagedTensor* new_tensor(ReservationPtr addresses, std::size_t bytes, Device device);
VersionedTensor* new_versioned_tensor(ReservationPtr addresses, std::size_t bytes, Device device);

}  // namespace gpupool::dlpack
