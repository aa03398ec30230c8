#include "memory/dlpack.h"

#include <utility>

namespace gpupool::dlpack {
namespace {

constexpr std::int32_t cpu = 1;
constexpr std::int32_t cuda = 2;
constexpr std::uint8_t unsigned_integer = 1;

template <typename Managed>
struct Hold {
  ReservationPtr reservation;
  std::int64_t shape[1];
  std::int64_t strides[1];  // in elements
  Managed managed;
};

template <typename Managed>
Managed* new_managed(ReservationPtr reservation, std::size_t bytes, Device device) {
  auto* hold =
      new Hold<Managed>{std::move(reservation), {static_cast<std::int64_t>(bytes)}, {1}, {}};
  Tensor& tensor = hold->managed.tensor;
  tensor.data = reinterpret_cast<void*>(hold->reservation->address());
  tensor.device = device;
  tensor.ndim = 1;
  tensor.dtype = {unsigned_integer, 8, 1};
  tensor.shape = hold->shape;
  tensor.strides = hold->strides;
  hold->managed.manager = hold;
  hold->managed.deleter = [](Managed* self) { delete static_cast<Hold<Managed>*>(self->manager); };
  return &hold->managed;
}

}  // namespace

Device device_of(const Driver& driver) {
  return driver.kind() == DeviceKind::cuda ? Device{cuda, driver.ordinal()} : Device{cpu, 0};
}

ManagedTensor* new_tensor(ReservationPtr addresses, std::size_t bytes, Device device) {
  return new_managed<ManagedTensor>(std::move(addresses), bytes, device);
}

VersionedTensor* new_versioned_tensor(ReservationPtr addresses, std::size_t bytes, Device device) {
  auto* tensor = new_managed<VersionedTensor>(std::move(addresses), bytes, device);
  tensor->version = {1, 0};
  return tensor;
}

}  // namespace gpupool::dlpack
