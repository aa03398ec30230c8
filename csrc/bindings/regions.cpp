// A region of a model, and its image on the host.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/handles.h"

namespace gpupool::bindings {
namespace {

std::vector<Run> to_runs(const std::vector<std::pair<std::size_t, std::size_t>>& pairs) {
  std::vector<Run> runs;
  runs.reserve(pairs.size());
  for (const auto& [offset, bytes] : pairs) {
    if (offset + bytes < offset) throw UsageError("a run wraps around");
    runs.push_back({offset, offset + bytes});
  }
  return runs;
}

}  // namespace

void bind_regions(py::module_& m) {
  py::class_<ImageBuffer>(m, "ImageBuffer", py::buffer_protocol(), "A region's host image.")
      .def_buffer([](ImageBuffer& self) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(self.image->data()),
                               static_cast<py::ssize_t>(self.region->bytes()), false);
      });
  py::class_<RegionHandle> region(m, "Region", "A range of device addresses of one tag.");
  region.def_property_readonly("tag", [](const RegionHandle& h) { return h.region->tag(); })
      .def_property_readonly("bytes", [](const RegionHandle& h) { return h.region->bytes(); })
      .def_property_readonly(
          "span_bytes", [](const RegionHandle& h) { return h.region->span_bytes(); },
          "Size in whole pages.")
      .def_property_readonly(
          "capacity_bytes", [](const RegionHandle& h) { return h.region->capacity_bytes(); },
          "How long it can become, in whole pages.")
      .def_property_readonly(
          "image_bytes", [](const RegionHandle& h) { return h.region->image_bytes(); },
          "Host memory behind it, in whole pages of the system.")
      .def_property_readonly(
          "mapped_pages",
          py::cpp_function(
              [](const RegionHandle& h) { return h.memory->mapped_pages(*h.region).size(); },
              NoGil()),
          "Pages behind it now; none while the model is out.")
      .def_property_readonly(
          "page_handles",
          py::cpp_function(
              [](const RegionHandle& h) { return handles_of(h.memory->mapped_pages(*h.region)); },
              NoGil()),
          "Page.handle of each of them, in order.")
      .def(
          "missing_image_bytes",
          [](const RegionHandle& h, std::size_t bytes) {
            return h.memory->missing_image_bytes(*h.region, bytes);
          },
          py::arg("bytes"), NoGil(), "What its image lacks to be as long as that.")
      .def(
          "resize",
          [](RegionHandle& h, std::size_t bytes, const std::vector<std::shared_ptr<Page>>& pages,
             std::size_t clean, int image_fd) {
            const auto gone =
                h.memory->resize(*h.region, bytes, {pages.begin(), pages.end()}, clean, image_fd);
            return handles_of(gone);
          },
          py::arg("bytes"), py::arg("pages"), py::arg("clean"), py::arg("image_fd"), NoGil(),
          "Makes it `bytes` long; the handles of the pages that it no longer maps.")
      .def_property_readonly("address", [](const RegionHandle& h) { return h.region->address(); })
      .def_property_readonly(
          "saved_bytes",
          py::cpp_function([](const RegionHandle& h) { return h.memory->saved_bytes(*h.region); },
                           NoGil()),
          "Bytes of the host image that a swap-in copies.")
      .def(
          "image",
          [](const RegionHandle& h) {
            auto image = h.region->share_image();
            if (!image && h.region->parked()) {
              throw UsageError(
                  "the region's image is parked in a file: look at it within Model.pinned()");
            }
            if (!image) {
              throw UsageError(
                  "the region has no image: it was made without one, or removed, or its model "
                  "closed");
            }
            return ImageBuffer{h.region, std::move(image)};
          },
          "The host image as a writable buffer of `bytes`, which stays for as long as it is "
          "held.\n\n"
          "Raises UsageError for a region that has none, as once it is removed or its model "
          "closed,\nand for one that is parked.")
      .def_property_readonly(
          "parked", [](const RegionHandle& h) { return h.region->parked(); },
          "Whether its image was let go, see ModelMemory.park.")
      .def_property_readonly(
          "image_changes", [](const RegionHandle& h) { return h.region->image_changes(); },
          "Counts what may have changed its image.")
      .def(
          "adopt_image",
          [](RegionHandle& h, const std::vector<std::uint64_t>& digests) {
            h.memory->adopt_image(*h.region, digests);
          },
          py::arg("digests") = std::vector<std::uint64_t>(), NoGil(),
          "The caller filled the image: a swap-in restores all of it.\n\n"
          "Whoever digested it meanwhile gives the digest of every DIGEST_PIECE_BYTES of it, and\n"
          "of what is behind the last of them, which are not made again. Raises UsageError for\n"
          "another number of them.")
      .def(
          "known_digests",
          [](const RegionHandle& h) {
            std::vector<std::tuple<std::size_t, std::size_t, std::uint64_t>> known;
            for (const auto& [piece, digest] : h.memory->known_digests(*h.region)) {
              known.emplace_back(piece.begin, piece.end, digest);
            }
            return known;
          },
          NoGil(),
          "What its image should digest to, piece by piece: begin and end in bytes, and the "
          "digest.\n\n"
          "Of bytes that were not saved there is none, nor of any where nothing is verified.\n"
          "Raises UsageError for a region without an image, as a parked one.")
      .def(
          "seal", [](RegionHandle& h) { h.memory->seal(*h.region); }, NoGil(),
          "Has it mapped for reading alone from now on, so that other models can have its pages.")
      .def(
          "unseal", [](RegionHandle& h) { h.memory->unseal(*h.region); }, NoGil(),
          "It can be written to again.")
      .def(
          "replace_image",
          [](RegionHandle& h, const std::vector<std::tuple<int, std::size_t, std::size_t>>& extents,
             bool is_shared) {
            std::vector<Extent> parts;
            parts.reserve(extents.size());
            for (const auto& [fd, offset, bytes] : extents) parts.push_back({fd, offset, bytes});
            return h.memory->replace_image(*h.region, parts, is_shared);
          },
          py::arg("extents"), py::arg("is_shared"), NoGil(),
          "Puts other memory with the same bytes behind its image, as (fd, offset, bytes).\n\n"
          "False if the driver did not let go of what was there.")
      .def_property_readonly(
          "image_is_shared", [](const RegionHandle& h) { return h.region->image_is_shared(); },
          "Whether its image is counted as memory that others share.")
      .def(
          "mark_written",
          [](RegionHandle& h, const std::vector<std::pair<std::size_t, std::size_t>>& runs) {
            h.memory->mark_written(*h.region, to_runs(runs));
          },
          py::arg("runs"), NoGil(), "Runs (offset, bytes) that the device has changed.");
  bind_views(region);
}

}  // namespace gpupool::bindings
