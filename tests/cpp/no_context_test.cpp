// What the pool daemon rests on: pages are made, handed on and taken in by processes that have no
// context, and those that have one find the same memory behind them. A program of its own, since a
// context anywhere in the process would answer another question.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "primary_context.h"
#include "real_gpu.h"

using namespace gpupool;

static const KeepsNoContext keeps_no_context;

namespace {

constexpr int inherited = 50;  // the descriptor of the page in the other process

// A process that takes a page in and does what is asked; see page_guest.cpp.
void guest(const char* role, int fd) {
  posix_spawn_file_actions_t actions;
  CHECK_EQ(posix_spawn_file_actions_init(&actions), 0);
  CHECK_EQ(posix_spawn_file_actions_adddup2(&actions, fd, inherited), 0);
  const std::string number = std::to_string(inherited);
  char* const arguments[] = {const_cast<char*>(PAGE_GUEST), const_cast<char*>(role),
                             const_cast<char*>(number.c_str()), nullptr};
  pid_t child = -1;
  CHECK_EQ(posix_spawn(&child, PAGE_GUEST, &actions, nullptr, arguments, environ), 0);
  CHECK_EQ(posix_spawn_file_actions_destroy(&actions), 0);
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 0);
}

// A page that is handed on, as the daemon has it.
struct HandedPage {
  explicit HandedPage(const DriverPtr& driver) : driver(driver) {
    CHECK_OK(driver->page_create(&handle, page_bytes));
    CHECK_OK(driver->page_export(&fd, handle));
  }
  void give_back() {
    CHECK_EQ(close(fd), 0);
    CHECK_OK(driver->page_release(handle));
  }
  DriverPtr driver;
  PageHandle handle = 0;
  int fd = -1;
};

}  // namespace

TEST(pages_are_made_exported_and_imported_without_a_context) {
  const DriverPtr driver = open_test_driver();
  CHECK(!has_primary_context());
  std::size_t granularity = 0;
  CHECK_OK(driver->page_granularity(&granularity));
  CHECK_EQ(page_bytes % granularity, 0);
  std::vector<HandedPage> pages;
  for (int i = 0; i < 8; ++i) pages.emplace_back(driver);
  for (const HandedPage& page : pages) {
    PageHandle same = 0;
    CHECK_OK(driver->page_import(&same, page.fd));
    CHECK_OK(driver->page_release(same));
  }
  for (HandedPage& page : pages) page.give_back();
  CHECK(!has_primary_context());
}

TEST(a_page_is_handed_on_among_processes_without_a_context) {
  HandedPage page(open_test_driver());
  guest("hand_on", page.fd);
  page.give_back();
  CHECK(!has_primary_context());
}

// As models take turns: nobody has it mapped in between, and only the descriptor is left.
TEST(what_one_process_writes_the_next_reads) {
  HandedPage page(open_test_driver());
  CHECK_OK(page.driver->page_release(page.handle));
  guest("write", page.fd);
  guest("read", page.fd);
  CHECK_OK(page.driver->page_import(&page.handle, page.fd));
  page.give_back();
  CHECK(!has_primary_context());
}

TEST(another_call_makes_a_context_and_the_end_of_its_driver_ends_it) {
  {
    const DriverPtr driver = open_test_driver();
    CHECK_OK(driver->context_synchronize());
    CHECK_EQ(has_primary_context(), test_driver_name() == "cuda");
  }
  CHECK(!has_primary_context());
}
