// Tensors over a reservation, as another library sees them.
#include "memory/dlpack.h"
#include "bench.h"

using namespace gpupool;

TEST(a_tensor_describes_its_bytes) {
  const DriverPtr driver = open_host_driver();
  const auto reservation = std::make_shared<const Reservation>(driver, page_bytes);
  const auto check = [&](const dlpack::Tensor& tensor) {
    CHECK_EQ(reinterpret_cast<DevicePtr>(tensor.data), reservation->address());
    CHECK_EQ(tensor.device.type, 1);  // kDLCPU
    CHECK_EQ(tensor.device.id, 0);
    CHECK_EQ(tensor.ndim, 1);
    CHECK_EQ(tensor.shape[0], 1000);
    CHECK_EQ(tensor.strides[0], 1);
    CHECK_EQ(tensor.byte_offset, 0);
    CHECK(tensor.dtype.code == 1 && tensor.dtype.bits == 8 && tensor.dtype.lanes == 1);  // kDLUInt
  };
  auto* managed = dlpack::new_tensor(reservation, 1000, dlpack::device_of(*driver));
  check(managed->tensor);
  managed->deleter(managed);
  auto* versioned = dlpack::new_versioned_tensor(reservation, 1000, dlpack::device_of(*driver));
  CHECK(versioned->version.major == 1 && versioned->version.minor == 0);
  CHECK_EQ(versioned->flags, 0);
  check(versioned->tensor);
  versioned->deleter(versioned);
  CHECK_EQ(reservation.use_count(), 1);
}

TEST(a_tensor_keeps_its_addresses_reserved) {
  const DriverPtr driver = open_host_driver();
  auto reservation = std::make_shared<const Reservation>(driver, page_bytes);
  const std::weak_ptr<const Reservation> watched = reservation;
  dlpack::ManagedTensor* managed =
      dlpack::new_tensor(std::move(reservation), page_bytes, dlpack::device_of(*driver));
  CHECK(!watched.expired());
  managed->deleter(managed);
  CHECK(watched.expired());
}
