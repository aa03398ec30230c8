// The digest of bytes that Python has.
#include <pybind11/typing.h>

#include <cstdint>
#include <string>

#include "bindings/bindings.h"
#include "bindings/bytes.h"
#include "digest/digest.h"
#include "driver/driver.h"

namespace gpupool::bindings {
namespace {

// Taken as they are: where pybind11 refuses an argument it repeats all of them, also 64 MiB of
// bytes.
using AnyBuffer = py::typing::Union<py::buffer>;
using AnyInteger = py::typing::Union<py::int_>;

std::uint64_t word_number(const AnyInteger& number) {
  const auto whole = py::reinterpret_steal<py::object>(PyNumber_Index(number.ptr()));
  const std::uint64_t word = whole ? PyLong_AsUnsignedLongLong(whole.ptr()) : 0;
  if (PyErr_Occurred() == nullptr) return word;
  PyErr_Clear();
  throw UsageError("first_word must be an integer of 64 bits, 0 or more");
}

}  // namespace

void bind_digest(py::module_& m) {
  m.attr("DIGEST_PIECE_BYTES") = digest_piece_bytes;
  m.def(
      "digest",
      [](const AnyBuffer& buffer, const AnyInteger& first_word) {
        const Bytes bytes(buffer, PyBUF_SIMPLE);
        const std::uint64_t first = word_number(first_word);
        const py::gil_scoped_release no_gil;
        return digest(bytes.data(), bytes.size(), first);
      },
      py::arg("buffer"), py::arg("first_word") = 0,
      "A 64-bit digest of the bytes, which must be contiguous; csrc/digest/digest.h defines it.\n\n"
      "It finds accidents, not forgeries. A run's digest is the sum, modulo 2**64, of those of "
      "its\n"
      "parts, each with the number of its first word of 8 bytes. Raises UsageError or "
      "BufferError.");
  m.def(
      "copy_with_digest",
      [](const AnyBuffer& destination, const AnyBuffer& source, const AnyInteger& first_word) {
        const Bytes to(destination, PyBUF_WRITABLE);
        const Bytes from(source, PyBUF_SIMPLE);
        if (to.size() != from.size()) {
          throw UsageError("the destination has " + std::to_string(to.size()) +
                           " bytes, the source " + std::to_string(from.size()));
        }
        const auto to_address = reinterpret_cast<std::uintptr_t>(to.data());
        const auto from_address = reinterpret_cast<std::uintptr_t>(from.data());
        if (to_address < from_address + from.size() && from_address < to_address + to.size()) {
          throw UsageError("the destination overlaps the source");
        }
        const std::uint64_t first = word_number(first_word);
        const py::gil_scoped_release no_gil;
        return copy_with_digest(to.data(), from.data(), to.size(), first);
      },
      py::arg("destination"), py::arg("source"), py::arg("first_word") = 0,
      "Copies, and returns the digest of what was copied; each byte is read once.\n\n"
      "Raises UsageError if the sizes differ or the two overlap, BufferError for a destination "
      "that\n"
      "is read-only or bytes that are not contiguous; nothing is copied then.");
}

}  // namespace gpupool::bindings
