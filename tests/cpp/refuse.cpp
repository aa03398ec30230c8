// The linker sends the calls of gpupool's own objects to __wrap_NAME, and those made here as
// __real_NAME to the system.
#include "refuse.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <utility>

namespace gpupool::refuse {
namespace {

std::atomic<Call> chosen;
std::atomic<int> left{0};  // 0: none fails
std::atomic<int> errno_of{0};
std::atomic<int> refused{0};
std::function<void()> act_before_mmap;  // of a test with one thread
std::function<std::optional<int>(std::byte*, int)> madvise_answer;

bool refuses(Call call) {
  if (left.load() == 0 || chosen.load() != call || --left > 0) return false;
  ++refused;
  errno = errno_of.load();
  return true;
}

}  // namespace

void nth(Call call, int nth, int error) {
  left = 0;
  chosen = call;
  errno_of = error;
  refused = 0;
  left = nth;
}

void before_mmap(std::function<void()> act) { act_before_mmap = std::move(act); }

void answer_madvise(std::function<std::optional<int>(std::byte*, int)> answer) {
  madvise_answer = std::move(answer);
}

int done() {
  left = 0;
  return refused;
}

}  // namespace gpupool::refuse

using gpupool::refuse::Call;
using gpupool::refuse::refuses;

extern "C" {

// NOLINTBEGIN(bugprone-reserved-identifier)
int __real_memfd_create(const char* name, unsigned flags);
int __wrap_memfd_create(const char* name, unsigned flags) {
  return refuses(Call::memfd_create) ? -1 : __real_memfd_create(name, flags);
}
int __real_ftruncate(int fd, off_t bytes);
int __wrap_ftruncate(int fd, off_t bytes) {
  return refuses(Call::ftruncate) ? -1 : __real_ftruncate(fd, bytes);
}
int __real_fallocate(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes) {
  return refuses(Call::fallocate) ? -1 : __real_fallocate(fd, mode, offset, bytes);
}
void* __real_mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset);
void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (refuses(Call::mmap)) return MAP_FAILED;
  if (const auto act = std::exchange(gpupool::refuse::act_before_mmap, nullptr)) act();
  return __real_mmap(at, bytes, protection, flags, fd, offset);
}
int __real_madvise(void* at, size_t bytes, int advice);
int __wrap_madvise(void* at, size_t bytes, int advice) {
  const auto& ask = gpupool::refuse::madvise_answer;
  const auto answer = ask ? ask(static_cast<std::byte*>(at), advice) : std::nullopt;
  if (!answer) return __real_madvise(at, bytes, advice);
  if (*answer == 0) return 0;
  errno = *answer;
  return -1;
}
int __real_mprotect(void* at, size_t bytes, int protection);
int __wrap_mprotect(void* at, size_t bytes, int protection) {
  return refuses(Call::mprotect) ? -1 : __real_mprotect(at, bytes, protection);
}
int __real_fstat(int fd, struct stat* info);
int __wrap_fstat(int fd, struct stat* info) {
  return refuses(Call::fstat) ? -1 : __real_fstat(fd, info);
}
long __real_syscall(long number, long a, long b, long c);
long __wrap_syscall(long number, long a, long b, long c) {
  if (number == SYS_membarrier && refuses(Call::membarrier)) return -1;
  return __real_syscall(number, a, b, c);
}
// NOLINTEND(bugprone-reserved-identifier)

}  // extern "C"
