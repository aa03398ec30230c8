// A driver with a stream and registered host memory beside it, to look at what is on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "driver/driver.h"
#include "image/image.h"
#include "test_driver.h"

namespace gpupool {

inline constexpr std::size_t mib = std::size_t{1} << 20;
inline constexpr std::size_t page_bytes = 2 * mib;

using Bytes = std::vector<std::uint8_t>;

#define CHECK_OK(call) CHECK_EQ(call, Status::success)

class Bench {
 public:
  explicit Bench(DriverPtr driver = open_test_driver())
      : driver_(std::move(driver)), staging_(driver_, -1, 64 * mib) {
    CHECK_OK(driver_->stream_create(&stream_));
  }
  ~Bench() { static_cast<void>(driver_->stream_destroy(stream_)); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  Driver* operator->() const { return driver_.get(); }
  const DriverPtr& driver() const { return driver_; }
  StreamHandle stream() const { return stream_; }
  std::byte* staging() const { return staging_.data(); }

  // An address range with `pages` fresh pages behind it; their handles go to `handles`.
  DevicePtr mapped(std::size_t pages, std::vector<PageHandle>* handles = nullptr) {
    DevicePtr base = 0;
    CHECK_OK(driver_->address_reserve(&base, pages * page_bytes));
    for (std::size_t i = 0; i < pages; ++i) {
      PageHandle page = 0;
      CHECK_OK(driver_->page_create(&page, page_bytes));
      CHECK_OK(driver_->map(base + i * page_bytes, page_bytes, page));
      if (handles != nullptr) handles->push_back(page);
    }
    CHECK_OK(driver_->set_access(base, pages * page_bytes));
    return base;
  }

  Bytes read(DevicePtr address, std::size_t bytes) {
    CHECK_OK(driver_->copy_to_host(staging(), address, bytes, stream_));
    CHECK_OK(driver_->stream_synchronize(stream_));
    const auto* start = reinterpret_cast<const std::uint8_t*>(staging());
    return Bytes(start, start + bytes);
  }
  void write(DevicePtr address, const Bytes& content) {
    std::copy(content.begin(), content.end(), reinterpret_cast<std::uint8_t*>(staging()));
    CHECK_OK(driver_->copy_to_device(address, staging(), content.size(), stream_));
    CHECK_OK(driver_->stream_synchronize(stream_));
  }

 private:
  DriverPtr driver_;
  HostMemory staging_;
  StreamHandle stream_ = nullptr;
};

inline bool all_are(const Bytes& bytes, std::uint8_t value) {
  return bytes.empty() ||
         (bytes[0] == value && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

// Bytes that look like nothing else: a function of the seed alone.
inline Bytes pattern(std::uint64_t seed, std::size_t bytes) {
  std::mt19937_64 random(seed);
  Bytes content(bytes);
  for (std::size_t at = 0; at < bytes; at += 8) {
    const std::uint64_t word = random();
    std::memcpy(content.data() + at, &word, std::min<std::size_t>(8, bytes - at));
  }
  return content;
}

}  // namespace gpupool
