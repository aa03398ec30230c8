// The extension gpupool._core, and the exceptions of the core as those of gpupool.errors.
#include <exception>
#include <string>
#include <system_error>

#include "bindings/bindings.h"
#include "image/supplied_slabs.h"
#include "memory/slab.h"
#include "swap/report.h"
#include "transfer/transfer.h"

namespace gpupool::bindings {
namespace {

void raise(const char* type, const py::tuple& arguments) {
  const py::object error = py::module_::import("gpupool.errors").attr(type)(*arguments);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const DriverError& error) {
    raise("DriverError", py::make_tuple(error.what(), std::string(error.call()),
                                        static_cast<int>(error.status())));
  } catch (const DamagedImage& error) {
    raise("DamagedMemoryError", py::make_tuple(error.what(), error.pages()));
  } catch (const Cancelled& error) {
    raise("SwapCancelledError", py::make_tuple(error.what()));
  } catch (const StaleBlock& error) {
    const BlockName name = error.name();
    raise("StaleBlockError", py::make_tuple(error.what(), name.slab, name.block, name.generation));
  } catch (const NoSlabSupplied& error) {
    raise("NoSlabSuppliedError", py::make_tuple(error.what()));
  } catch (const OutOfBlocks& error) {
    raise("OutOfBlocksError", py::make_tuple(error.what()));
  } catch (const UsageError& error) {
    raise("UsageError", py::make_tuple(error.what()));
  } catch (const std::system_error& error) {
    raise("HostMemoryError", py::make_tuple(error.what()));
  }
}

}  // namespace
}  // namespace gpupool::bindings

PYBIND11_MODULE(_core, m) {
  using namespace gpupool::bindings;
  m.doc() = "The C++ core of gpupool: pages, mappings, images and swaps.";
  py::register_exception_translator(translate);
  // A signature has Python's names only for what was bound before it.
  bind_driver(m);
  bind_pages(m);
  bind_transfer(m);
  bind_digest(m);
  bind_swaps(m);
  bind_regions(m);
  bind_models(m);
  bind_arena(m);
  bind_slabs(m);
}
