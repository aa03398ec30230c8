// Copies of blocks and digests of runs, at addresses that the caller answers for.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/bindings.h"
#include "image/run_digests.h"
#include "transfer/transfer.h"

namespace gpupool::bindings {
namespace {

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

}  // namespace

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

}  // namespace gpupool::bindings
