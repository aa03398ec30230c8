#include "driver/driver.h"

namespace gpupool {

std::string Driver::status_name(Status status) const {
  switch (status) {
    case Status::success: return "CUDA_SUCCESS";
    case Status::invalid_value: return "CUDA_ERROR_INVALID_VALUE";
    case Status::out_of_memory: return "CUDA_ERROR_OUT_OF_MEMORY";
    case Status::not_initialized: return "CUDA_ERROR_NOT_INITIALIZED";
    case Status::no_device: return "CUDA_ERROR_NO_DEVICE";
    case Status::invalid_device: return "CUDA_ERROR_INVALID_DEVICE";
    case Status::invalid_handle: return "CUDA_ERROR_INVALID_HANDLE";
    case Status::not_found: return "CUDA_ERROR_NOT_FOUND";
    case Status::not_ready: return "CUDA_ERROR_NOT_READY";
    case Status::illegal_address: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case Status::launch_timeout: return "CUDA_ERROR_LAUNCH_TIMEOUT";
    case Status::host_memory_already_registered: return "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED";
    case Status::host_memory_not_registered: return "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED";
    case Status::not_supported: return "CUDA_ERROR_NOT_SUPPORTED";
    case Status::unknown: return "CUDA_ERROR_UNKNOWN";
  }
  return "CUDA error " + std::to_string(static_cast<int>(status));
}

DriverError::DriverError(const Driver& driver, const char* call, Status status)
    : std::runtime_error(std::string(call) + " failed: " + driver.status_name(status)),
      status_(status),
      call_(call) {}

}  // namespace gpupool
