// The core as Python has it, one file for each thing. Calls that may block release the GIL;
// exceptions become those of gpupool.errors.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace gpupool::bindings {

namespace py = pybind11;
using NoGil = py::call_guard<py::gil_scoped_release>;

void bind_driver(py::module_& m);
void bind_pages(py::module_& m);
void bind_transfer(py::module_& m);
void bind_digest(py::module_& m);
void bind_swaps(py::module_& m);
void bind_regions(py::module_& m);
void bind_models(py::module_& m);
void bind_arena(py::module_& m);
void bind_slabs(py::module_& m);

}  // namespace gpupool::bindings
