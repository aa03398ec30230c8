// The only file that knows Python. Calls that may block release the GIL; exceptions become those
// of gpupool.errors.
#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "digest/digest.h"
#include "driver/driver.h"
#include "driver/fault.h"
#include "driver/observe.h"
#include "image/host_slabs.h"
#include "image/image.h"
#include "image/run_digests.h"
#include "image/supplied_slabs.h"
#include "memory/arena_slots.h"
#include "memory/dlpack.h"
#include "memory/memory.h"
#include "memory/slab.h"
#include "swap/swap.h"
#include "transfer/page_slabs.h"
#include "transfer/scrub.h"
#include "transfer/transfer.h"

namespace py = pybind11;
using namespace gpupool;
using NoGil = py::call_guard<py::gil_scoped_release>;
using DlDevicePair = std::pair<std::int32_t, std::int32_t>;
// Taken as they are: where pybind11 refuses an argument it repeats all of them, also 64 MiB of
// bytes.
using AnyBuffer = py::typing::Union<py::buffer>;
using AnyInteger = py::typing::Union<py::int_>;
using InterfaceFields = py::typing::Dict<py::str, py::object>;

namespace {

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

// A model and its driver; a region remembers both so that it can speak for itself.
struct Memory {
  DriverPtr driver;
  std::shared_ptr<ModelMemory> memory;
};

struct RegionHandle {
  DriverPtr driver;
  std::shared_ptr<ModelMemory> memory;
  RegionPtr region;
};

// The host image as a writable buffer, which keeps it: the region may let go of it meanwhile.
struct ImageBuffer {
  RegionPtr region;
  std::shared_ptr<HostMemory> image;
};

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

std::vector<PageHandle> handles_of(const std::vector<PagePtr>& pages) {
  std::vector<PageHandle> handles;
  handles.reserve(pages.size());
  for (const PagePtr& page : pages) handles.push_back(page->handle());
  return handles;
}

std::vector<Run> to_runs(const std::vector<std::pair<std::size_t, std::size_t>>& pairs) {
  std::vector<Run> runs;
  runs.reserve(pairs.size());
  for (const auto& [offset, bytes] : pairs) {
    if (offset + bytes < offset) throw UsageError("a run wraps around");
    runs.push_back({offset, offset + bytes});
  }
  return runs;
}

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

void bind_observer(py::module_& m) {
  py::class_<CallCount>(m, "CallCount", "What became of one driver call.")
      .def_readonly("calls", &CallCount::calls)
      .def_readonly("failures", &CallCount::failures)
      .def_readonly("ns", &CallCount::ns, "Nanoseconds spent inside, of all of them.");
  py::class_<Trace, std::shared_ptr<Trace>>(m, "Trace", "What happened when, in bounded memory.")
      .def(py::init<std::size_t>(), py::arg("max_events") = Trace::default_capacity)
      .def("close", &Trace::close, "Nothing is recorded from now on.")
      .def(
          "write",
          [](Trace& self, const std::function<py::object(py::bytes)>& sink) {
            self.close();
            self.write([&](std::string_view piece) { sink(py::bytes(piece)); });
          },
          py::arg("sink"), "Closes it and hands it to `sink` as JSON, piece by piece.")
      .def_property_readonly("dropped", &Trace::dropped, "Events for which there was no room.");
  py::class_<Observer, std::shared_ptr<Observer>>(m, "Observer",
                                                  "Counts the calls of a driver, and traces them.")
      .def(
          "calls",
          [](const Observer& self) {
            std::map<std::string, CallCount> calls;
            const DriverStatistics statistics = self.statistics();
            for (std::size_t i = 0; i < statistics.calls.size(); ++i) {
              calls[driver_call_names[i]] = statistics.calls[i];
            }
            return calls;
          },
          "Of each driver call, by its name.")
      .def(
          "amounts",
          [](const Observer& self) {
            const DriverStatistics statistics = self.statistics();
            std::map<std::string, std::uint64_t> amounts;
#define GPUPOOL_AMOUNT(name) amounts[#name] = statistics.name;
            GPUPOOL_OBSERVED_AMOUNTS(GPUPOOL_AMOUNT)
#undef GPUPOOL_AMOUNT
            return amounts;
          },
          "What was moved, and what there is of everything now.")
      .def("start", &Observer::start, py::arg("trace").none(false), NoGil(),
           "Record to `trace` until stop().")
      .def("stop", &Observer::stop, NoGil())
      .def_property_readonly("tracing", &Observer::tracing)
      .def(
          "span",
          [](Observer& self, const std::string& name, std::int64_t begin_ns, std::int64_t end_ns,
             const std::map<std::string, Trace::Value>& values) {
            self.span(name, begin_ns, end_ns, {values.begin(), values.end()});
          },
          py::arg("name"), py::arg("begin_ns"), py::arg("end_ns"), py::arg("values"),
          "Something of this thread that a reader of the trace should see.");
}

void bind_driver(py::module_& m) {
  py::class_<Driver, DriverPtr>(m, "Driver", "Device work behind one interface.")
      .def_property_readonly(
          "kind",
          [](const Driver& self) {
            return std::string(self.kind() == DeviceKind::cuda ? "cuda" : "host");
          },
          "'cuda' or 'host'.")
      .def_property_readonly("ordinal", &Driver::ordinal, "Index of the device.")
      .def(
          "page_granularity",
          [](Driver& self) {
            std::size_t bytes = 0;
            GPUPOOL_CALL(&self, page_granularity, &bytes);
            return bytes;
          },
          "Smallest page size in bytes; every page size is a multiple of it.")
      .def("now_ns", &Driver::now_ns, "The monotonic clock of traces, in nanoseconds.")
      .def_property_readonly("observer", &observer_of, "Who counts its calls, if somebody does.");
  m.def(
      "open_host_driver",
      [](std::optional<std::uint64_t> stepped_seed) {
        HostOptions options;
        if (stepped_seed) {
          options.streams = StreamMode::stepped;
          options.seed = *stepped_seed;
        }
        return open_host_driver(options);
      },
      py::arg("stepped_seed") = py::none(),
      "An emulation in host memory: pages are memfds, streams are threads.\n\n"
      "With a seed, for tests, what is on streams runs inside driver calls, as early or as late "
      "as\n"
      "CUDA allows.");
  m.def("open_cuda_driver", &open_cuda_driver, py::arg("ordinal"),
        "The CUDA driver of this machine. Raises RuntimeError where there is none.");
  py::class_<FaultPlan, std::shared_ptr<FaultPlan>>(m, "FaultPlan",
                                                    "Fails chosen driver calls, for tests.")
      .def(py::init<>())
      .def(
          "arm",
          [](FaultPlan& self, std::uint64_t nth, int code, bool persistent, bool releases) {
            self.arm(nth, static_cast<Status>(code), persistent, releases);
          },
          py::arg("nth"), py::arg("code"), py::arg("persistent") = false,
          py::arg("releases") = false,
          "The nth call from now answers `code`; with `persistent` so do all after it.\n\n"
          "Calls that only give something back count and fail with `releases` alone.")
      .def("arm_kill", &FaultPlan::arm_kill, py::arg("nth"), py::arg("after") = false,
           "This process is killed before the nth call from now, or with `after` once the nth has\n"
           "succeeded.")
      .def("disarm", &FaultPlan::disarm)
      .def_property_readonly(
          "injected", [](const FaultPlan& self) { return self.injected(); },
          "Calls failed since arm().");
  m.def("with_faults", &with_faults, py::arg("driver").none(false), py::arg("plan").none(false),
        "The same driver, failing as the plan says.");
  m.def(
      "with_observer",
      [](const DriverPtr& driver) {
        if (observer_of(*driver)) return driver;
        return with_observer(driver, std::make_shared<Observer>());
      },
      py::arg("driver").none(false), "The same driver, observed; itself if it is already.");
}

void bind_memory(py::module_& m) {
  py::class_<Page, std::shared_ptr<Page>>(m, "Page", "Physical device memory of one fixed size.")
      .def_static(
          "import_fd",
          [](const DriverPtr& driver, int fd, std::size_t bytes) {
            return std::const_pointer_cast<Page>(Page::import(driver, fd, bytes));
          },
          py::arg("driver").none(false), py::arg("fd"), py::arg("bytes"), NoGil(),
          "A page another process exported; `fd` stays the caller's.")
      .def("export_fd", &Page::export_fd, NoGil(), "A new descriptor, owned by the caller.")
      .def_property_readonly("handle", &Page::handle, "The driver's, unique while the page lives.")
      .def_property_readonly("bytes", &Page::bytes);
  py::class_<PoolStatistics>(m, "PoolStatistics", "What of a budget is where, in pages.")
      .def_readonly("total", &PoolStatistics::total)
      .def_readonly("created", &PoolStatistics::created)
      .def_readonly("clean", &PoolStatistics::clean)
      .def_readonly("dirty", &PoolStatistics::dirty)
      .def_readonly("scrubbing", &PoolStatistics::scrubbing)
      .def_readonly("withheld", &PoolStatistics::withheld)
      .def_readonly("owned", &PoolStatistics::owned);
  py::class_<PagePool, std::shared_ptr<PagePool>>(m, "PagePool",
                                                  "The pages of one budget and who has them.")
      .def(py::init<DriverPtr, std::size_t, std::size_t>(), py::arg("driver").none(false),
           py::arg("budget_bytes"), py::arg("page_bytes"), NoGil())
      .def("create_ahead", &PagePool::create_ahead, py::arg("count"), NoGil(),
           "Makes pages now rather than at their first use, until there are `count`.")
      .def("acquire", &PagePool::acquire, py::arg("owner"), py::arg("count"), NoGil(),
           "`count` pages for `owner`, all or none, clean ones first.")
      .def(
          "give_back",
          [](PagePool& self, OwnerId owner, const std::vector<PageId>& pages) {
            self.give_back(owner, pages);
          },
          py::arg("owner"), py::arg("pages"), NoGil(), "Pages their owner no longer maps.")
      .def(
          "share",
          [](PagePool& self, OwnerId owner, const std::vector<PageId>& pages) {
            self.share(owner, pages);
          },
          py::arg("owner"), py::arg("pages"), NoGil(),
          "Gives `owner` pages that others hold and go on to hold.")
      .def("give_back_all", &PagePool::give_back_all, py::arg("owner"), NoGil())
      .def(
          "page",
          [](const PagePool& self, PageId id) {
            return std::const_pointer_cast<Page>(self.page(id));
          },
          py::arg("id"), NoGil())
      .def("is_clean", &PagePool::is_clean, py::arg("id"), NoGil(),
           "Whether it read as zeros when it was acquired, or does now if it is free.")
      .def("owned", &PagePool::owned, py::arg("owner"), NoGil())
      .def("statistics", &PagePool::statistics, NoGil())
      .def_property_readonly("free_pages", py::cpp_function(&PagePool::free_pages, NoGil()))
      .def_property_readonly("created_pages", py::cpp_function(&PagePool::created_pages, NoGil()))
      .def_property_readonly("total_pages", &PagePool::total_pages)
      .def_property_readonly("page_bytes", &PagePool::page_bytes);
  py::class_<Scrubber>(m, "Scrubber", "Zeroes pages of a pool on a stream of its own.")
      .def(py::init<DriverPtr, std::shared_ptr<PagePool>, std::size_t>(),
           py::arg("driver").none(false), py::arg("pool").none(false), py::arg("pages_at_once"),
           NoGil())
      .def("scrub_free", &Scrubber::scrub_free, NoGil(),
           "Scrubs dirty free pages, at most as many as it takes at a time; returns how many.")
      .def(
          "scrub_owned",
          [](Scrubber& self, OwnerId owner, const std::vector<PageId>& pages) {
            self.scrub_owned(owner, pages);
          },
          py::arg("owner"), py::arg("pages"), NoGil(),
          "Scrubs pages that `owner` holds and has not mapped.")
      .def("settle", &Scrubber::settle, NoGil(),
           "Gives the pool what an earlier failure withheld from it.");
}

// The bytes of an object that has them in one piece. Holds them in place; made and let go under the
// GIL.
class Bytes {
 public:
  Bytes(const py::object& object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw py::error_already_set();
  }
  ~Bytes() { PyBuffer_Release(&view_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  [[nodiscard]] void* data() const { return view_.buf; }
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(view_.len); }
  [[nodiscard]] std::size_t item_size() const { return static_cast<std::size_t>(view_.itemsize); }

 private:
  Py_buffer view_{};
};

// Numbers of 64 bits: a buffer of them, as array('Q') and numpy have it, or any sequence.
using WordsArgument = std::variant<py::buffer, std::vector<std::uint64_t>>;

std::vector<std::uint64_t> to_words(const WordsArgument& argument, const char* name) {
  if (const auto* words = std::get_if<std::vector<std::uint64_t>>(&argument)) return *words;
  const py::buffer_info info = std::get<py::buffer>(argument).request();
  const bool native = info.format.starts_with('@') || info.format.starts_with('=') ||
                      info.format.starts_with('<');  // all of them the same where gpupool runs
  const std::string kind = native ? info.format.substr(1) : info.format;
  if (info.ndim != 1 || info.itemsize != 8 || kind.size() != 1 ||
      std::string("QqLl").find(kind) == std::string::npos) {
    throw UsageError(std::string(name) + " must be integers of 64 bits in one dimension");
  }
  std::vector<std::uint64_t> words(static_cast<std::size_t>(info.shape[0]));
  const auto* at = static_cast<const char*>(info.ptr);
  for (std::size_t i = 0; i < words.size(); ++i, at += info.strides[0]) {
    std::memcpy(&words[i], at, sizeof words[i]);
  }
  return words;
}

// Blocks between device and host, at addresses that the caller answers for.
class BlockCopier {
 public:
  BlockCopier(DriverPtr driver, std::size_t chunk_bytes)
      : driver_(std::move(driver)), stream_(std::make_unique<CopyStream>(driver_, chunk_bytes)) {}
  ~BlockCopier() {
    const py::gil_scoped_release no_gil;  // it waits for what is in flight
    stream_.reset();
  }
  BlockCopier(const BlockCopier&) = delete;
  BlockCopier& operator=(const BlockCopier&) = delete;

  void to_host(const WordsArgument& device, const WordsArgument& host, const WordsArgument& sizes,
               const std::string& method) {
    const bool batch = is_batch(method);
    const std::vector<CopySpan> spans = to_spans(device, host, sizes);
    const py::gil_scoped_release no_gil;
    if (batch) return stream_->to_host(spans);
    for (const CopySpan& span : spans) stream_->to_host(span.host, span.device, span.bytes);
  }
  void to_device(const WordsArgument& device, const WordsArgument& host, const WordsArgument& sizes,
                 const std::string& method) {
    const bool batch = is_batch(method);
    const std::vector<CopySpan> spans = to_spans(device, host, sizes);
    const py::gil_scoped_release no_gil;
    if (batch) return stream_->to_device(spans);
    for (const CopySpan& span : spans) stream_->to_device(span.device, span.host, span.bytes);
  }
  void synchronize() { stream_->synchronize(); }
  std::uintptr_t stream() const { return reinterpret_cast<std::uintptr_t>(stream_->handle()); }
  std::unique_ptr<Event> mark() {
    auto event = std::make_unique<Event>(driver_);
    stream_->record(*event);
    return event;
  }

 private:
  static bool is_batch(const std::string& method) {
    if (method != "batch" && method != "each") {
      throw UsageError("method is '" + method + "': use 'batch' or 'each'");
    }
    return method == "batch";
  }
  static std::vector<CopySpan> to_spans(const WordsArgument& device, const WordsArgument& host,
                                        const WordsArgument& sizes) {
    const auto from = to_words(device, "device_addresses"), to = to_words(host, "host_addresses"),
               bytes = to_words(sizes, "sizes");
    if (from.size() != to.size() || from.size() != bytes.size()) {
      throw UsageError("there are " + std::to_string(from.size()) + " device addresses, " +
                       std::to_string(to.size()) + " host addresses and " +
                       std::to_string(bytes.size()) + " sizes");
    }
    std::vector<CopySpan> spans;
    spans.reserve(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) {
      spans.push_back({from[i], reinterpret_cast<std::byte*>(to[i]), bytes[i]});
    }
    return spans;
  }
  const DriverPtr driver_;
  std::unique_ptr<CopyStream> stream_;
};

// Digests of runs of device memory, at addresses and behind a stream that the caller answers for.
class RunDigester {
 public:
  explicit RunDigester(DriverPtr driver)
      : digests_(std::make_unique<RunDigests>(std::move(driver))) {}
  ~RunDigester() {
    const py::gil_scoped_release no_gil;  // it waits for what is in flight
    digests_.reset();
  }
  RunDigester(const RunDigester&) = delete;
  RunDigester& operator=(const RunDigester&) = delete;

  std::uint64_t enqueue(const WordsArgument& addresses, const WordsArgument& sizes,
                        std::uintptr_t stream) {
    const auto at = to_words(addresses, "addresses"), bytes = to_words(sizes, "sizes");
    if (at.size() != bytes.size()) {
      throw UsageError("there are " + std::to_string(at.size()) + " addresses and " +
                       std::to_string(bytes.size()) + " sizes");
    }
    std::vector<DeviceRun> runs;
    runs.reserve(at.size());
    for (std::size_t i = 0; i < at.size(); ++i) runs.push_back({at[i], bytes[i]});
    const py::gil_scoped_release no_gil;
    return digests_->enqueue(runs, reinterpret_cast<StreamHandle>(stream));
  }
  py::bytes take(std::uint64_t number) {
    const std::vector<std::uint64_t> sums = digests_->take(number);
    return {reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(sums[0])};
  }

 private:
  std::unique_ptr<RunDigests> digests_;
};

void bind_transfer(py::module_& m) {
  py::class_<Event>(m, "CopyMark", "A point among the copies of one stream.")
      .def("done", &Event::done, NoGil(),
           "Whether all copies before it have arrived. Raises DriverError.")
      .def("wait", &Event::wait, NoGil(), "Returns when they have. Raises DriverError.");
  py::class_<BlockCopier>(
      m, "BlockCopier",
      "Copies blocks between device and registered host memory on a stream of its own.\n\n"
      "Addresses and sizes are integers of 64 bits, in a buffer such as array('Q') or numpy's, or "
      "in\n"
      "a sequence. 'batch' makes one driver call for many blocks, which it copies in no order: "
      "what\n"
      "is written must not overlap. 'each' makes one for each block. The memory must stay as it "
      "is\n"
      "until synchronize(), also after a DriverError, whose status is 801 if the driver has no "
      "call\n"
      "for batches; nothing is in flight of that one.")
      .def(py::init<DriverPtr, std::size_t>(), py::arg("driver").none(false),
           py::arg("chunk_bytes") = std::size_t{32} << 20)
      .def("to_host", &BlockCopier::to_host, py::arg("device_addresses"), py::arg("host_addresses"),
           py::arg("sizes"), py::arg("method") = "batch",
           "Returns when the copies are enqueued. Raises UsageError or DriverError.")
      .def("to_device", &BlockCopier::to_device, py::arg("device_addresses"),
           py::arg("host_addresses"), py::arg("sizes"), py::arg("method") = "batch",
           "Returns when the copies are enqueued. Raises UsageError or DriverError.")
      .def("mark", &BlockCopier::mark, NoGil(),
           "A mark behind the copies so far. Raises DriverError.")
      .def("synchronize", &BlockCopier::synchronize, NoGil(),
           "Waits for all copies. Raises DriverError.")
      .def_property_readonly("stream", &BlockCopier::stream, "The driver's handle of its stream.");
  py::class_<RunDigester>(
      m, "RunDigester",
      "Digests runs of device memory behind what a stream does; for one thread at a time.")
      .def(py::init<DriverPtr>(), py::arg("driver").none(false))
      .def("enqueue", &RunDigester::enqueue, py::arg("addresses"), py::arg("sizes"),
           py::arg("stream"),
           "Puts the digests of these runs, of a byte or more, on the stream of that handle; what "
           "to\n"
           "take them by. Raises UsageError, DriverError or OSError; nothing is in flight then.")
      .def("take", &RunDigester::take, py::arg("number"),
           "The digests, of 8 bytes each, once the stream is known to be past that point.\n\n"
           "What was enqueued before must have ended as well, and is forgotten. Raises UsageError "
           "for\n"
           "what was taken already.");
}

std::uint64_t word_number(const AnyInteger& number) {
  const auto whole = py::reinterpret_steal<py::object>(PyNumber_Index(number.ptr()));
  const std::uint64_t word = whole ? PyLong_AsUnsignedLongLong(whole.ptr()) : 0;
  if (PyErr_Occurred() == nullptr) return word;
  PyErr_Clear();
  throw UsageError("first_word must be an integer of 64 bits, 0 or more");
}

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

void bind_swap(py::module_& m) {
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
  py::class_<ImageBuffer>(m, "ImageBuffer", py::buffer_protocol(), "A region's host image.")
      .def_buffer([](ImageBuffer& self) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(self.image->data()),
                               static_cast<py::ssize_t>(self.region->bytes()), false);
      });
  py::class_<RegionHandle>(m, "Region", "A range of device addresses of one tag.")
      .def_property_readonly("tag", [](const RegionHandle& h) { return h.region->tag(); })
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
          py::arg("runs"), NoGil(), "Runs (offset, bytes) that the device has changed.")
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
            return self.memory->swap_in(
                {pages.begin(), pages.end()}, clean,
                cancellation ? cancellation->get_token() : std::stop_token(), given(shared));
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
            return self.memory->warm({pages.begin(), pages.end()}, clean,
                                     cancellation ? cancellation->get_token() : std::stop_token(),
                                     given(shared));
          },
          py::arg("pages"), py::arg("clean") = 0, py::arg("cancellation") = py::none(),
          py::arg("shared") = SharedPages(), NoGil(),
          "Fills so many more pages of a model that is out; swap_in verifies them once more.\n\n"
          "`shared` ones are as `swap_in` has them, at places of those that come.")
      .def(
          "cool",
          [](const Memory& self, std::size_t count) {
            std::vector<PageHandle> handles;
            handles.reserve(std::min(count, self.memory->warm_pages()));
            for (const PagePtr& page : self.memory->cool(count)) handles.push_back(page->handle());
            return handles;
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
          [](const Memory& self, std::size_t keep) {
            const std::vector<PagePtr> gone = self.memory->drain(keep);
            std::vector<PageHandle> handles;
            for (const PagePtr& page : gone) handles.push_back(page->handle());
            return handles;
          },
          py::arg("keep") = 0, NoGil(),
          "The next part of a swap-out: the handles of the pages that went, which swap_out "
          "ends.\n\n"
          "None once all that is left goes together. The model is torn from the first part on.");
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

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of gpupool: pages, mappings, images and swaps.";
  py::register_exception_translator(translate);
  bind_observer(m);
  bind_driver(m);
  bind_memory(m);
  bind_transfer(m);
  bind_digest(m);
  bind_swap(m);
  bind_arena(m);
  bind_slabs(m);
}
