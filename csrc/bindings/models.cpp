// The residency of one model: what its swaps are told, and what they say of themselves.
#include <pybind11/native_enum.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/handles.h"

namespace gpupool::bindings {
namespace {

std::vector<RegionPtr> regions_of(const std::vector<RegionHandle>& handles) {
  std::vector<RegionPtr> regions;
  for (const RegionHandle& handle : handles) regions.push_back(handle.region);
  return regions;
}

using SharedPages = std::vector<std::pair<std::size_t, std::shared_ptr<Page>>>;

std::vector<SharedPage> given(const SharedPages& shared) {
  std::vector<SharedPage> pages;
  pages.reserve(shared.size());
  for (const auto& [index, page] : shared) pages.push_back({index, page});
  return pages;
}

std::stop_token token_of(const std::optional<std::stop_source>& cancellation) {
  return cancellation ? cancellation->get_token() : std::stop_token();
}

}  // namespace

void bind_swaps(py::module_& m) {
  py::native_enum<Tag>(m, "Tag", "enum.Enum", "What a region holds.")
      .value("weights", Tag::weights)
      .value("runtime", Tag::runtime)
      .value("cudagraph", Tag::cudagraph)
      .value("kv_cache", Tag::kv_cache)
      .value("workspace", Tag::workspace)
      .finalize();
  py::native_enum<Verify>(m, "Verify", "enum.Enum", "Which copies of a swap-in are verified.")
      .value("off", Verify::off)
      .value("sample", Verify::sample)
      .value("always", Verify::always)
      .finalize();
  py::class_<SwapReport>(m, "SwapReport", "What one swap took and moved.")
      .def(py::init<>(), "Of nothing.")
      .def_property_readonly("map_s", [](const SwapReport& r) { return 1e-9 * double(r.map_ns); })
      .def_property_readonly("copy_s", [](const SwapReport& r) { return 1e-9 * double(r.copy_ns); })
      .def_property_readonly(
          "moving_s", [](const SwapReport& r) { return 1e-9 * double(r.moving_ns); },
          "Of copy_s, the part in which bytes went over the link.")
      .def_property_readonly(
          "ahead_s", [](const SwapReport& r) { return 1e-9 * double(r.ahead_ns); },
          "Of moving_s, what took copies that nobody waited for.")
      .def_readonly("ahead_bytes", &SwapReport::ahead_bytes,
                    "Of the copied, what nobody waited for.")
      .def(
          "as_ahead",
          [](SwapReport report) {
            report.ahead_bytes = report.copied_bytes;
            report.ahead_ns = report.moving_ns;
            return report;
          },
          "The same, of copies that nobody waited for.")
      .def_property_readonly("total_s",
                             [](const SwapReport& r) { return 1e-9 * double(r.total_ns); })
      .def(
          "__add__", [](const SwapReport& a, const SwapReport& b) { return a + b; },
          "Of one after the other.")
      .def_readonly("copied_bytes", &SwapReport::copied_bytes)
      .def_readonly("filled_bytes", &SwapReport::filled_bytes)
      .def_readonly("verified_bytes", &SwapReport::verified_bytes)
      .def_readonly("recopied_bytes", &SwapReport::recopied_bytes)
      .def_readonly("shared_bytes", &SwapReport::shared_bytes)
      .def_readonly("audited_bytes", &SwapReport::audited_bytes,
                    "That nobody said were written, and a swap-out looked at.")
      .def_readonly("unmarked_bytes", &SwapReport::unmarked_bytes,
                    "Of those, in pieces that were written all the same.")
      .def_readonly("pages", &SwapReport::pages);
}

void bind_models(py::module_& m) {
  py::class_<std::stop_source>(m, "Cancellation", "Stops the swap-in that it is given to.")
      .def(py::init<>())
      .def(
          "cancel", [](std::stop_source& self) { self.request_stop(); },
          "From any thread; the swap-in raises SwapCancelledError unless it is done by then.");
  py::class_<Memory>(m, "ModelMemory", "Residency of one model.")
      .def(py::init([](DriverPtr driver, std::size_t page_bytes, std::size_t chunk_bytes,
                       std::size_t streams, Verify verify) {
             auto memory =
                 std::make_shared<ModelMemory>(driver, page_bytes, chunk_bytes, streams, verify);
             return Memory{std::move(driver), std::move(memory)};
           }),
           py::arg("driver").none(false), py::arg("page_bytes"),
           py::arg("chunk_bytes") = std::size_t{32} << 20, py::arg("streams") = std::size_t{2},
           py::arg_v("verify", Verify::always, "Verify.always"))
      .def(
          "add_region",
          [](const Memory& self, Tag tag, std::size_t bytes, std::optional<int> image_fd,
             std::size_t capacity) {
            return RegionHandle{self.driver, self.memory,
                                self.memory->add_region(tag, bytes, image_fd, capacity)};
          },
          py::arg("tag"), py::arg("bytes"), py::arg("image_fd") = -1, py::arg("capacity_bytes") = 0,
          NoGil())
      .def(
          "remove_region",
          [](const Memory& self, const RegionHandle& h) { self.memory->remove_region(*h.region); },
          py::arg("region").none(false), NoGil(), "Forgets a region of a model that is out.")
      .def(
          "close", [](const Memory& self) { self.memory->close(); }, NoGil(),
          "Lets the images of a model that is out go; it cannot be changed any more.")
      .def(
          "take_gone_image_bytes",
          [](const Memory& self) { return self.memory->take_gone_image_bytes(); },
          "Bytes of images that have gone since the last call: no longer pinned nor mapped.")
      .def(
          "take_gone_shared_bytes",
          [](const Memory& self) { return self.memory->take_gone_shared_bytes(); },
          "The same of images that others share.")
      .def(
          "park",
          [](const Memory& self, const std::vector<RegionHandle>& regions,
             const std::vector<std::uint64_t>& changes) {
            self.memory->park(regions_of(regions), changes);
          },
          py::arg("regions"), py::arg("changes"), NoGil(),
          "Lets the images of these regions go, of which the caller has a copy that was begun "
          "when\n"
          "`image_changes` of each was this.")
      .def(
          "make_image",
          [](const Memory& self, const RegionHandle& h, int fd) {
            return ImageBuffer{h.region, self.memory->make_image(*h.region, fd)};
          },
          py::arg("region"), py::arg("fd"), NoGil(), "Memory for what a parked region had.")
      .def(
          "unpark",
          [](const Memory& self, const std::vector<RegionHandle>& regions,
             const std::vector<ImageBuffer>& images) {
            std::vector<std::shared_ptr<HostMemory>> memories;
            for (const ImageBuffer& image : images) memories.push_back(image.image);
            self.memory->unpark(regions_of(regions), memories);
          },
          py::arg("regions"), py::arg("images"), NoGil(),
          "Each of these regions has its image again, filled with what was parked.")
      .def_property_readonly(
          "pages_needed",
          py::cpp_function([](const Memory& self) { return self.memory->pages_needed(); }, NoGil()))
      .def_property_readonly(
          "resident",
          py::cpp_function([](const Memory& self) { return self.memory->resident(); }, NoGil()))
      .def_property_readonly(
          "torn", py::cpp_function([](const Memory& self) { return self.memory->torn(); }, NoGil()),
          "Pages are still mapped after a failure or a drain; swap_out unmaps them.")
      .def(
          "swap_in",
          [](const Memory& self, const std::vector<std::shared_ptr<Page>>& pages, std::size_t clean,
             const std::optional<std::stop_source>& cancellation, const SharedPages& shared) {
            return self.memory->swap_in({pages.begin(), pages.end()}, clean, token_of(cancellation),
                                        given(shared));
          },
          py::arg("pages"), py::arg("clean") = 0, py::arg("cancellation") = py::none(),
          py::arg("shared") = SharedPages(), NoGil(),
          "Maps the pages, of which the first `clean` read as zeros, and restores every region.\n\n"
          "Where it verifies, only KV caches and workspaces have clean pages as they are.\n"
          "`shared` pages of other models have the bytes of some of the pages that can be warm,\n"
          "of sealed regions, whose places in the order of those come with them.")
      .def_property_readonly(
          "warmable_pages",
          py::cpp_function([](const Memory& self) { return self.memory->warmable_pages(); },
                           NoGil()),
          "How many pages can stay, or come ahead, while the model is out.")
      .def_property_readonly(
          "warm_pages",
          py::cpp_function([](const Memory& self) { return self.memory->warm_pages(); }, NoGil()),
          "How many do.")
      .def(
          "warm",
          [](const Memory& self, const std::vector<std::shared_ptr<Page>>& pages, std::size_t clean,
             const std::optional<std::stop_source>& cancellation, const SharedPages& shared) {
            return self.memory->warm({pages.begin(), pages.end()}, clean, token_of(cancellation),
                                     given(shared));
          },
          py::arg("pages"), py::arg("clean") = 0, py::arg("cancellation") = py::none(),
          py::arg("shared") = SharedPages(), NoGil(),
          "Fills so many more pages of a model that is out; swap_in verifies them once more.\n\n"
          "`shared` ones are as `swap_in` has them, at places of those that come.")
      .def(
          "cool",
          [](const Memory& self, std::size_t count) {
            return handles_of(self.memory->cool(count));
          },
          py::arg("count"), NoGil(),
          "Unmaps the last so many warm pages; the handles of those that went.")
      .def(
          "swap_out",
          [](const Memory& self, std::size_t keep) { return self.memory->swap_out(keep); },
          py::arg("keep") = 0, NoGil(),
          "Saves what the images lack and unmaps all but the first `keep` warmable pages.")
      .def(
          "drain",
          [](const Memory& self, std::size_t keep) { return handles_of(self.memory->drain(keep)); },
          py::arg("keep") = 0, NoGil(),
          "The next part of a swap-out: the handles of the pages that went, which swap_out "
          "ends.\n\n"
          "None once all that is left goes together. The model is torn from the first part on.");
}

}  // namespace gpupool::bindings
