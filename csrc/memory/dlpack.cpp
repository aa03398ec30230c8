#include "memory/dlpack.h"

#include <utility>

namespace gpupool::dlpack {
namespace {

constexpr std::int32_t cpu = 1;
constexpr std::int32_t cuda = 2;
constexpr std::uint8_t unsigned_integer = 1;

struct Hold {
  ReservationPtr reservation;
  std::int64_t shape[1];
  ManagedTensor managed;
};

}  // namespace

Device device_of(const Driver& driver) {
  return driver.kind() == DeviceKind::cuda ? Device{cuda, driver.ordinal()} : Device{cpu, 0};
}

ManagedTensor* new_tensor(ReservationPtr reservation, std::size_t bytes, Device device) {
  auto* hold = new Hold{std::move(reservation), {static_cast<std::int64_t>(bytes)}, {}};
  Tensor& tensor = hold->managed.tensor;
  tensor.data = reinterpret_cast<void*>(hold->reservation->address());
  tensor.device = device;
  tensor.ndim = 1;
  tensor.dtype = {unsigned_integer, 8, 1};
  tensor.shape = hold->shape;
  hold->managed.manager = hold;
  hold->managed.deleter = [](ManagedTensor* self) { delete static_cast<Hold*>(self->manager); };
  return &hold->managed;
}

}  // namespace gpupool::dlpack
