// Pages of a budget, who has them, and who zeroes them.
#include <cstddef>
#include <memory>
#include <vector>

#include "bindings/bindings.h"
#include "memory/memory.h"
#include "transfer/scrub.h"

namespace gpupool::bindings {

void bind_pages(py::module_& m) {
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

}  // namespace gpupool::bindings
