// Makes calls of the system fail that gpupool's own code makes, in programs linked with refuse.cpp.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>

namespace gpupool::refuse {

enum class Call { memfd_create, ftruncate, fallocate, mmap, mprotect, fstat, membarrier };

// The nth of these calls from now, on any thread, fails with `error` and does nothing else.
void nth(Call call, int nth, int error);
// Runs `act` just before the next mmap(2), which is then made as ever: what another thread may do
// at that moment.
void before_mmap(std::function<void()> act);
// Answers every madvise(2) from now, on any thread, in the system's stead: with an errno, or 0 for
// success. Without an answer the system does, and always where this is null.
void answer_madvise(std::function<std::optional<int>(std::byte* at, int advice)> answer);
// How many did since the last nth(), which this ends.
int done();

}  // namespace gpupool::refuse
