// Scenarios' models that have the same weights.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "fault_runner.h"

namespace gpupool {

// Two models with the same weights, the first of which has them on the device.
inline void sealed(World& w, std::optional<Model>& first) {
  for (auto* const model : {&w.a, &w.b}) {
    Model& it = **model;
    it.load(0, 300);
    std::memcpy(it.regions[0]->image(), w.a->regions[0]->image(), it.regions[0]->bytes());
    it.expected[0] = w.a->expected[0];
    it.memory.adopt_image(*it.regions[0]);
    it.memory.seal(*it.regions[0]);
  }
  first->swap_in();
}
// On the first page of the other's, all of it or, ahead of use, what can be warm.
inline void come_shared(World& w, std::optional<Model>& from, std::optional<Model>& to,
                        bool ahead) {
  const SharedPage shared{0, from->memory.mapped_pages(*from->regions[0])[0]};
  const std::vector<PageId> owned = w.pool->owned(from->owner);
  const auto id = std::find_if(owned.begin(), owned.end(),
                               [&](PageId one) { return w.pool->page(one) == shared.page; });
  try {
    w.pool->share(to->owner, {&*id, 1});
    const std::size_t count = ahead ? to->memory.warmable_pages() : to->memory.pages_needed();
    const std::vector<PagePtr> own = w.acquire(to->owner, count - 1);
    if (ahead) {
      to->memory.warm(own, 0, {}, {&shared, 1});
    } else {
      to->memory.swap_in(own, 0, {}, {&shared, 1});
    }
  } catch (...) {
    if (!to->memory.torn()) to->give_back();
    throw;
  }
}
inline void both_have_it(World& w) {
  sealed(w, w.a);
  come_shared(w, w.a, w.b, false);
}
// Whoever is there has what it should, and can be changed once it is unsealed.
inline void unsealed(World& w, bool) {
  for (auto* const model : {&w.a, &w.b}) {
    Model& it = **model;
    if (it.memory.torn()) it.swap_out();
    if (it.memory.resident()) {
      it.check_content();
      it.swap_out();
    }
    it.cool(it.memory.warm_pages());
    it.memory.unseal(*it.regions[0]);
  }
}
inline void replace_image(World& w) {
  const std::size_t bytes = w.a->regions[0]->image_bytes();
  const Fd fd{memfd_create("image", MFD_CLOEXEC)};
  CHECK_EQ(ftruncate(fd.fd, static_cast<off_t>(bytes)), 0);
  CHECK_EQ(pwrite(fd.fd, w.a->regions[0]->image(), bytes, 0), static_cast<ssize_t>(bytes));
  const Extent extents[] = {{fd.fd, 0, mib}, {fd.fd, mib, bytes - mib}};
  w.a->memory.replace_image(*w.a->regions[0], extents, true);
}

}  // namespace gpupool
