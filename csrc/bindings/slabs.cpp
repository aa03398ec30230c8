// Blocks of fixed sizes, carved from slabs.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/bytes.h"
#include "image/host_slabs.h"
#include "image/supplied_slabs.h"
#include "memory/slab.h"
#include "transfer/page_slabs.h"

namespace gpupool::bindings {
namespace {

// A buffer of 64-bit words, in one piece and in place.
class WordsInPlace {
 public:
  WordsInPlace(const py::object& object, const char* name, int flags)
      : bytes_(object, flags | PyBUF_ND) {
    if (bytes_.item_size() != 8 ||
        (bytes_.size() > 0 &&
         reinterpret_cast<std::uintptr_t>(bytes_.data()) % alignof(std::uint64_t) != 0)) {
      throw UsageError(std::string(name) + " must be words of 64 bits, aligned");
    }
  }
  template <typename Word>
  [[nodiscard]] std::span<Word> as() const {
    static_assert(sizeof(Word) == 8);
    return {static_cast<Word*>(bytes_.data()), bytes_.size() / 8};
  }

 private:
  Bytes bytes_;
};

}  // namespace

void bind_slabs(py::module_& m) {
  py::class_<SuppliedSlabs, std::shared_ptr<SuppliedSlabs>>(
      m, "SuppliedSlabs", "Slabs of pinned host memory that somebody else grants. Thread safe.")
      .def(py::init<DriverPtr, std::size_t>(), py::arg("driver").none(false), py::arg("slab_bytes"))
      .def("supply", &SuppliedSlabs::supply, py::arg("fd"), NoGil(),
           "One more slab, over a file that has room for it; the descriptor stays the caller's.\n\n"
           "Raises UsageError, DriverError or HostMemoryError; nothing has changed then.")
      .def(
          "drop_idle", &SuppliedSlabs::drop_idle, NoGil(),
          "Lets go of the slabs that are not in use and says how many are gone, no longer mapped.\n"
          "What the driver does not let go counts as `lost`.")
      .def_property_readonly("slab_bytes", &SuppliedSlabs::slab_bytes)
      .def_property_readonly("in_use", &SuppliedSlabs::in_use)
      .def_property_readonly("idle", &SuppliedSlabs::idle)
      .def_property_readonly("lost", &SuppliedSlabs::lost);
  py::class_<ShapeStatistics>(m, "ShapeStatistics", "The blocks of one size.")
      .def_readonly("block_bytes", &ShapeStatistics::block_bytes)
      .def_readonly("slabs", &ShapeStatistics::slabs)
      .def_readonly("blocks", &ShapeStatistics::blocks, "In these slabs, in use or not.")
      .def_readonly("blocks_live", &ShapeStatistics::blocks_live);
  py::class_<SlabStatistics>(m, "SlabStatistics", "What a slab allocator holds.")
      .def_readonly("shapes", &SlabStatistics::shapes)
      .def_readonly("slabs", &SlabStatistics::slabs)
      .def_readonly("bytes_held", &SlabStatistics::bytes_held)
      .def_readonly("bytes_live", &SlabStatistics::bytes_live)
      .def_readonly("fragmentation", &SlabStatistics::fragmentation,
                    "Share of the bytes held that no block in use covers.")
      .def_readonly("slabs_made", &SlabStatistics::slabs_made)
      .def_readonly("slabs_returned", &SlabStatistics::slabs_returned)
      .def_readonly("slabs_taken", &SlabStatistics::slabs_taken, "From the thread that owned them.")
      .def_readonly("return_failures", &SlabStatistics::return_failures);
  py::class_<SlabAllocator, std::shared_ptr<SlabAllocator>>(
      m, "SlabAllocator", "Blocks of fixed sizes, carved from slabs. Thread safe.")
      .def_static(
          "on_pages",
          [](const DriverPtr& driver, const std::shared_ptr<PagePool>& pages, OwnerId owner,
             std::size_t pages_per_slab, std::vector<std::size_t> block_bytes,
             std::size_t slabs_max) {
            return SlabAllocator::create(
                std::make_shared<PageSlabs>(driver, pages, owner, pages_per_slab),
                {std::move(block_bytes), slabs_max});
          },
          py::arg("driver").none(false), py::arg("pages").none(false), py::arg("owner"),
          py::arg("pages_per_slab"), py::arg("block_bytes"), py::arg("slabs_max"),
          "Slabs of device memory: pages of a pool, as `owner` of them.")
      .def_static(
          "on_host",
          [](const DriverPtr& driver, std::size_t slab_bytes, std::vector<std::size_t> block_bytes,
             std::size_t slabs_max) {
            return SlabAllocator::create(std::make_shared<HostSlabs>(driver, slab_bytes),
                                         {std::move(block_bytes), slabs_max});
          },
          py::arg("driver").none(false), py::arg("slab_bytes"), py::arg("block_bytes"),
          py::arg("slabs_max"), "Slabs of pinned host memory.")
      .def_static(
          "on_supplied",
          [](const std::shared_ptr<SuppliedSlabs>& source, std::vector<std::size_t> block_bytes,
             std::size_t slabs_max) {
            // One lock for all: its calls are few, and for many blocks each.
            return SlabAllocator::create(source, {.block_bytes = std::move(block_bytes),
                                                  .slabs_max = slabs_max,
                                                  .thread_owned = false});
          },
          py::arg("source").none(false), py::arg("block_bytes"), py::arg("slabs_max"),
          "Slabs that are supplied to `source`; without one left, NoSlabSuppliedError is raised.")
      .def(
          "allocate_many",
          [](SlabAllocator& self, std::size_t bytes, const py::buffer& handles) {
            const WordsInPlace words(handles, "handles", PyBUF_WRITABLE);
            const py::gil_scoped_release no_gil;
            self.allocate_many(self.shape_for(bytes), words.as<BlockHandle>());
          },
          py::arg("bytes"), py::arg("handles"),
          "Fills a writable buffer of 64-bit words with handles, as `allocate` does: all or "
          "none.\n\n"
          "After an error nothing is allocated, and what is in the buffer means nothing.")
      .def(
          "free_many",
          [](SlabAllocator& self, const py::buffer& handles) {
            const WordsInPlace words(handles, "handles", PyBUF_SIMPLE);
            const py::gil_scoped_release no_gil;
            self.free_many(words.as<const BlockHandle>());
          },
          py::arg("handles"),
          "Frees the blocks of a buffer of handles: all, or none if StaleBlockError is raised, as\n"
          "also for a handle named twice.")
      .def(
          "addresses_of",
          [](const SlabAllocator& self, const py::buffer& handles, const py::buffer& addresses) {
            const WordsInPlace words(handles, "handles", PyBUF_SIMPLE);
            const WordsInPlace found(addresses, "addresses", PyBUF_WRITABLE);
            const py::gil_scoped_release no_gil;
            self.addresses_of(words.as<const BlockHandle>(), found.as<DevicePtr>());
          },
          py::arg("handles"), py::arg("addresses"),
          "Fills a writable buffer as long as that of the handles with the addresses of their "
          "blocks.\n\n"
          "Raises StaleBlockError or UsageError; the buffer is as before then.")
      .def(
          "allocate",
          [](SlabAllocator& self, std::size_t bytes) {
            return static_cast<std::uint64_t>(self.allocate(self.shape_for(bytes)));
          },
          py::arg("bytes"), NoGil(),
          "A handle of a block of the smallest size that holds `bytes`, which are whatever was\n"
          "there.\n\n"
          "Raises UsageError if no block is as large or the pool has no page free,\n"
          "OutOfBlocksError at the limit on slabs, DriverError or HostMemoryError.")
      .def(
          "allocate_shape",
          [](SlabAllocator& self, std::size_t shape) {
            return static_cast<std::uint64_t>(self.allocate(shape));
          },
          py::arg("shape"), NoGil(),
          "The same for one of the sizes, by its index in `block_bytes`.")
      .def(
          "free", [](SlabAllocator& self, std::uint64_t handle) { self.free(BlockHandle{handle}); },
          py::arg("handle"), NoGil(),
          "Ends one use of a block, by any thread; nothing in flight may touch it any more.\n\n"
          "Raises StaleBlockError if the handle's block is not in use under it; nothing has\n"
          "changed then.")
      .def(
          "address_of",
          [](const SlabAllocator& self, std::uint64_t handle) {
            return self.address_of(BlockHandle{handle});
          },
          py::arg("handle"), "Where the block is. Raises StaleBlockError.")
      .def_property_readonly("block_bytes",
                             py::cpp_function(
                                 [](const SlabAllocator& self) {
                                   std::vector<std::size_t> all;
                                   for (const ShapeStatistics& shape : self.statistics().shapes) {
                                     all.push_back(shape.block_bytes);
                                   }
                                   return all;
                                 },
                                 NoGil()),
                             "The sizes of blocks, in bytes.")
      .def("trim", &SlabAllocator::trim, NoGil(),
           "Gives every slab back that has no block in use. Raises DriverError.")
      .def("statistics", &SlabAllocator::statistics, NoGil(),
           "Exact while no other thread is calling.");
}

}  // namespace gpupool::bindings
