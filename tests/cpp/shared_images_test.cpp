// Images that have the same host memory, because they have the same bytes.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tuned_bench.h"

using namespace gpupool;

namespace {

struct MemoryFile {
  explicit MemoryFile(std::size_t bytes) : fd(memfd_create("image", MFD_CLOEXEC)) {
    CHECK_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
  }
  ~MemoryFile() { close(fd); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  int fd;
};

}  // namespace

TEST(images_with_the_same_bytes_share_host_memory) {
  Machine machine(16);
  const std::size_t image_bytes = (weights_bytes + 4095) / 4096 * 4096;
  const MemoryFile first(image_bytes), second(image_bytes);
  Tuned one(machine, 1, Verify::always, first.fd), other(machine, 2, Verify::always, second.fd);
  const auto extents = [&](std::size_t last) {
    return std::vector<Extent>{{first.fd, 0, page_bytes},
                               {second.fd, page_bytes, page_bytes},
                               {first.fd, 2 * page_bytes, page_bytes},
                               {second.fd, 3 * page_bytes, last}};
  };
  const std::size_t tail = image_bytes - 3 * page_bytes;
  {
    const auto looking = other.weights().share_image();
    CHECK_THROWS(UsageError, other.memory.replace_image(other.weights(), extents(tail), true));
  }
  CHECK_THROWS(UsageError, other.memory.replace_image(other.weights(), extents(tail - 1), true));
  const Extent uneven[] = {{second.fd, 0, page_bytes - 4096},
                           {second.fd, page_bytes - 4096, image_bytes - page_bytes + 4096}};
  CHECK_THROWS(UsageError, other.memory.replace_image(other.weights(), uneven, true));
  CHECK_THROWS(UsageError, other.memory.replace_image(*other.regions[2], extents(tail), true));
  CHECK_THROWS(UsageError, other.memory.replace_image(one.weights(), extents(tail), true));
  CHECK_THROWS(DamagedImage,
               other.memory.replace_image(other.weights(), {{{first.fd, 0, image_bytes}}}, true));
  CHECK_THROWS(UsageError, other.memory.replace_image(other.weights(),
                                                      {{{first.fd, 4096, image_bytes}}}, true));
  CHECK(other.memory.replace_image(other.weights(), extents(tail), true));
  CHECK_EQ(other.memory.take_gone_image_bytes(), 0);  // it is counted as shared from now on
  // What it does not use any more can be thrown away, and what it uses outlives the other model.
  for (const std::size_t at : {std::size_t{0}, 2 * page_bytes}) {
    CHECK_EQ(fallocate(second.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(at), static_cast<off_t>(page_bytes)),
             0);
  }
  one.memory.close();
  other.swap_in();
  other.check_content();
  CHECK_THROWS(UsageError, other.memory.replace_image(other.weights(), extents(tail), true));
  other.swap_out();

  // And back, as before something is written to it.
  const MemoryFile own(image_bytes);
  std::byte* const image = other.weights().image();
  CHECK_EQ(write(own.fd, image, image_bytes), static_cast<ssize_t>(image_bytes));
  CHECK(other.memory.replace_image(other.weights(), {{{own.fd, 0, image_bytes}}}, false));
  CHECK_EQ(other.memory.take_gone_shared_bytes(), image_bytes);
  CHECK_EQ(other.memory.take_gone_shared_bytes(), 0);
  other.swap_in();
  other.check_content();
  other.swap_out();
  other.memory.close();
  CHECK_EQ(other.memory.take_gone_image_bytes() - 102'400, image_bytes);
}

TEST(an_image_that_cannot_be_replaced_stays) {
  Machine machine(16);
  const std::size_t image_bytes = (weights_bytes + 4095) / 4096 * 4096;
  const MemoryFile file(image_bytes), same(image_bytes);
  Tuned model(machine, 1, Verify::always, file.fd);
  CHECK_EQ(write(same.fd, model.weights().image(), image_bytes), static_cast<ssize_t>(image_bytes));
  const Extent halves[] = {{same.fd, 0, page_bytes},
                           {same.fd, page_bytes, image_bytes - page_bytes}};
  for (const std::uint64_t nth : {1, 2}) {
    machine.plan->arm(nth, Status::out_of_memory, false);
    CHECK_THROWS(DriverError, model.memory.replace_image(model.weights(), halves, true));
    machine.plan->disarm();
    model.swap_in();
    model.check_content();
    model.swap_out();
  }
  // The driver keeps the old one: what is in it must not be thrown away.
  machine.plan->arm_call(DriverCall::host_unregister, 1, 1, Status::unknown);
  CHECK(!model.memory.replace_image(model.weights(), halves, true));
  machine.plan->disarm();
  model.swap_in();
  model.check_content();
}
