// A region for other libraries: its bytes as DLPack and the array interfaces show them, and blocks
// of it for the allocators of torch and CuPy.
#include <pybind11/typing.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/handles.h"
#include "memory/arena_slots.h"
#include "memory/dlpack.h"

namespace gpupool::bindings {
namespace {

using DlDevicePair = std::pair<std::int32_t, std::int32_t>;
using InterfaceFields = py::typing::Dict<py::str, py::object>;

// A capsule of one of DLPack's two kinds. A consumer renames it and takes over the deleter.
template <typename Managed>
py::capsule to_capsule(Managed* tensor, const char* name, void (*drop)(PyObject*)) {
  try {
    return py::capsule(tensor, name, drop);
  } catch (...) {
    tensor->deleter(tensor);
    throw;
  }
}

template <typename Managed>
void drop_capsule(PyObject* object, const char* name) {
  if (!PyCapsule_IsValid(object, name)) return;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(object, name));
  managed->deleter(managed);
}

// Keeps the addresses reserved for as long as a tensor exists.
py::capsule to_dlpack(const Driver& driver, const Region& region, bool versioned) {
  const dlpack::Device device = dlpack::device_of(driver);
  if (versioned) {
    return to_capsule(dlpack::new_versioned_tensor(region.reservation(), region.bytes(), device),
                      "dltensor_versioned", [](PyObject* object) {
                        drop_capsule<dlpack::VersionedTensor>(object, "dltensor_versioned");
                      });
  }
  return to_capsule(
      dlpack::new_tensor(region.reservation(), region.bytes(), device), "dltensor",
      [](PyObject* object) { drop_capsule<dlpack::ManagedTensor>(object, "dltensor"); });
}

// What __array_interface__ and __cuda_array_interface__ (both version 3) have in common.
InterfaceFields array_interface(const RegionHandle& h) {
  InterfaceFields fields;
  fields["shape"] = py::make_tuple(h.region->bytes());
  fields["typestr"] = "|u1";
  fields["data"] = py::make_tuple(h.region->address(), false);
  fields["strides"] = py::none();
  fields["version"] = 3;
  return fields;
}

InterfaceFields numpy_interface(const RegionHandle& h) {
  if (h.driver->kind() == DeviceKind::cuda) {
    throw py::attribute_error(
        "a region on a GPU has no __array_interface__: use __cuda_array_interface__ or DLPack");
  }
  return array_interface(h);
}

InterfaceFields cuda_interface(const RegionHandle& h) {
  if (h.driver->kind() != DeviceKind::cuda) {
    throw py::attribute_error(
        "a region on the host has no __cuda_array_interface__: use __array_interface__ or DLPack");
  }
  InterfaceFields fields = array_interface(h);
  fields["stream"] = py::none();  // a swap-in is complete when it returns
  return fields;
}

// A region cut into blocks by the functions that another library calls.
class RegionArena {
 public:
  RegionArena(const RegionHandle& h, std::size_t alignment)
      : arena_(h.memory->share_out(*h.region, alignment)),
        slot_(h.driver, h.region->reservation(), arena_) {}
  [[nodiscard]] const ArenaSlot& slot() const noexcept { return slot_; }
  [[nodiscard]] ArenaStatistics statistics() const { return arena_->statistics(); }

 private:
  std::shared_ptr<Arena> arena_;
  ArenaSlot slot_;
};

}  // namespace

void bind_views(py::class_<RegionHandle>& region) {
  region
      .def("__dlpack_device__",
           [](const RegionHandle& h) {
             const dlpack::Device device = dlpack::device_of(*h.driver);
             return DlDevicePair(device.type, device.id);
           })
      .def(
          "__dlpack__",
          [](const RegionHandle& h, std::optional<std::intptr_t> stream,
             std::optional<std::pair<int, int>> max_version, std::optional<DlDevicePair> dl_device,
             std::optional<bool> copy) {
            const dlpack::Device device = dlpack::device_of(*h.driver);
            const DlDevicePair own(device.type, device.id);
            if (copy.value_or(false) || dl_device.value_or(own) != own) {
              throw py::buffer_error("a region is shown where it is, never copied");
            }
            if (stream && h.driver->kind() != DeviceKind::cuda) {
              throw py::buffer_error("a region on the host has no stream: leave stream away");
            }
            return to_dlpack(*h.driver, *h.region, max_version && max_version->first >= 1);
          },
          py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
          py::arg("dl_device") = py::none(), py::arg("copy") = py::none(),
          "A uint8 tensor over the addresses, which stay reserved while it lives; there is memory\n"
          "behind them only while the model is resident.")
      .def_property_readonly("__array_interface__", &numpy_interface,
                             "The bytes for numpy, as DLPack shows them; on the host alone.")
      .def_property_readonly("__cuda_array_interface__", &cuda_interface,
                             "The bytes for CuPy, Numba and others; on a GPU alone.");
}

void bind_arena(py::module_& m) {
  py::class_<ArenaStatistics>(m, "ArenaStatistics", "What of a region's room is in use, in bytes.")
      .def_readonly("limit_bytes", &ArenaStatistics::limit_bytes)
      .def_readonly("live_blocks", &ArenaStatistics::live_blocks)
      .def_readonly("live_bytes", &ArenaStatistics::live_bytes)
      .def_readonly("peak_bytes", &ArenaStatistics::peak_bytes)
      .def_readonly("free_blocks", &ArenaStatistics::free_blocks)
      .def_readonly("largest_free_bytes", &ArenaStatistics::largest_free_bytes)
      .def_readonly("refused", &ArenaStatistics::refused,
                    "Allocations for which there was no room.");
  py::class_<RegionArena>(m, "RegionArena",
                          "Blocks of a region, for the allocators of torch and CuPy.")
      .def(py::init<const RegionHandle&, std::size_t>(), py::arg("region"),
           py::arg("alignment") = 512, NoGil())
      .def_property_readonly(
          "slot", [](const RegionArena& self) { return self.slot().index(); },
          "Which of the extension's pairs of functions it has.")
      .def_property_readonly(
          "torch_symbols",
          [](const RegionArena& self) {
            return std::pair(self.slot().torch_allocate(), self.slot().torch_free());
          },
          "Names of the two functions in the extension that torch is to call.")
      .def_property_readonly(
          "cupy_functions",
          [](const RegionArena& self) {
            return std::make_tuple(self.slot().cupy_parameter(), ArenaSlot::cupy_allocate(),
                                   ArenaSlot::cupy_free());
          },
          "Addresses: what to pass first, malloc and free.")
      .def_property_readonly(
          "refused_frees", [](const RegionArena& self) { return self.slot().refused_frees(); },
          "Frees of what is no block in use, or when the device had failed.")
      .def("statistics", &RegionArena::statistics)
      .def_static("slots_taken", &ArenaSlot::taken,
                  "How many of the extension's pairs of functions are in use.");
}

}  // namespace gpupool::bindings
