// Drivers, and what stands before one: who counts and traces its calls, or a plan of its failures.
#include <pybind11/functional.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "bindings/bindings.h"
#include "driver/driver.h"
#include "driver/fault.h"
#include "driver/observe.h"

namespace gpupool::bindings {
namespace {

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

}  // namespace

void bind_driver(py::module_& m) {
  bind_observer(m);
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

}  // namespace gpupool::bindings
