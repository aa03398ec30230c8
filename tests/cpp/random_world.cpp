#include "random_world.h"

#include <algorithm>

namespace gpupool {

RandomWorld::RandomWorld(std::uint64_t seed, const Wrap& wrap)
    : machine_(seed, pool_pages, wrap), pages_(pool_pages) {
  for (std::size_t i = 0; i < owner_count; ++i) {
    owners_[i].id = i + 1;
    owners_[i].staging = std::make_unique<HostMemory>(machine_.device, -1, small_page);
    CHECK_OK(machine_.device->stream_create(&owners_[i].stream));
  }
  model_ = std::make_unique<SteppedModel>(machine_, model_owner);
  const std::shared_ptr<PagePool> pool(&machine_.pool, [](PagePool*) {});
  scrubber_ = std::make_unique<Scrubber>(machine_.faulty, pool, 3);
}

RandomWorld::~RandomWorld() {
  for (const Owner& owner : owners_) {
    static_cast<void>(machine_.device->stream_synchronize(owner.stream));
  }
}

void RandomWorld::step() {
  for (int attempts = 0; !attempt(); ++attempts) CHECK(attempts < 1000);
}

bool RandomWorld::attempt() {
  const std::size_t kind = below(kinds);
  Owner& owner = owners_[below(owner_count)];
  Place& place = owner.places[below(place_count)];
  constexpr Status codes[] = {Status::unknown, Status::out_of_memory, Status::invalid_value};
  const bool fail = below(8) == 0;
  if (fail) machine_.plan->arm(1 + below(6), codes[below(3)], false);
  bool effective = true;
  try {
    switch (kind) {
      case 0: effective = acquire(owner); break;
      case 1: effective = give_back(owner); break;
      case 2: effective = map(owner, place); break;
      case 3: effective = unmap(owner, place); break;
      case 4: effective = stamp(owner, place); break;
      case 5: effective = look(owner, place); break;
      case 6: effective = read(owner, place); break;
      case 7: effective = reserve(place); break;
      case 8: effective = import(owner); break;
      case 9: effective = swap(); break;
      case 10: effective = refusal(owner); break;
      case 11: effective = scrub(owner); break;
      case 12: effective = resize(); break;
    }
  } catch (const DriverError&) {
    if (!fail || machine_.plan->injected() == 0) throw;
  }
  if (fail) injected += machine_.plan->injected();
  machine_.plan->disarm();
  if (model_->memory().torn()) {  // it failed to leave after a part of it had gone
    model_->swap_out();
    follow_model();
  }
  if (scrub_failed_) settle_scrubber();
  if (effective) ++done[kind];
  CHECK_EQ(machine_.wrong, std::string());
  if (below(256) == 0) audit();
  return effective;
}

bool RandomWorld::acquire(Owner& owner) {
  const std::size_t count = below(6), available = free_pages();
  if (count > available) {
    CHECK_THROWS(UsageError, machine_.pool.acquire(owner.id, count));
    return true;
  }
  const std::vector<PageId> got = machine_.pool.acquire(owner.id, count);
  CHECK_EQ(got.size(), count);
  for (const PageId id : got) {
    CHECK(id < pages_.size());
    CHECK_EQ(pages_[id].owner, 0);
    CHECK(!machine_.pool.is_clean(id) || pages_[id].content.is_zero());
    pages_[id].owner = owner.id;
  }
  return true;
}

bool RandomWorld::give_back(Owner& owner) {
  std::vector<PageId> all = unused(owner);
  if (all.empty()) return false;
  all.resize(1 + below(all.size()));
  machine_.pool.give_back(owner.id, all);
  for (const PageId id : all) pages_[id].owner = 0;
  return true;
}

bool RandomWorld::refusal(Owner& owner) {
  std::vector<PageId> mine = unused(owner);
  PageId foreign = static_cast<PageId>(below(2 * pool_pages));
  if (foreign < pool_pages && pages_[foreign].owner == owner.id) {
    mine.push_back(foreign);
    mine.push_back(foreign);  // named twice
  } else {
    mine.push_back(foreign);  // another's, nobody's, or no page at all
  }
  CHECK_THROWS(UsageError, machine_.pool.give_back(owner.id, mine));
  return true;
}

bool RandomWorld::map(Owner& owner, Place& place) {
  if (!place.reservation || place.mapped) return false;
  if (!place.mapping) {
    std::vector<PageId> ids = unused(owner);
    if (ids.empty()) return false;
    ids.resize(std::min<std::size_t>(ids.size(), 1 + below(place_pages)));
    std::vector<PagePtr> held;
    for (const PageId id : ids) held.push_back(machine_.pool.page(id));
    auto mapping = std::make_unique<Mapping>(machine_.faulty, place.reservation, std::move(held));
    mapping->map();
    place.mapping = std::move(mapping);
    place.pages = std::move(ids);
    for (const PageId id : place.pages) pages_[id].in_use = true;
  } else {
    place.mapping->map();
  }
  place.mapped = true;
  for (std::size_t i = 0; i < place.pages.size(); ++i) {
    expect(place.pages[i], place.words(i), "mapped");
  }
  return true;
}

bool RandomWorld::unmap(Owner& owner, Place& place) {
  if (!place.mapping) return false;
  synchronize(owner);
  place.mapping->unmap();
  place.mapped = false;
  if (below(2) == 0) return true;  // the same pages may come again at the same place
  place.mapping.reset();
  for (const PageId id : place.pages) pages_[id].in_use = false;
  place.pages.clear();
  return true;
}

bool RandomWorld::reserve(Place& place) {
  if (place.mapping) return false;
  if (place.reservation && below(2) == 0) {
    place.reservation.reset();
  } else {
    place.reservation =
        std::make_shared<const Reservation>(machine_.faulty, place_pages * small_page);
  }
  return true;
}

bool RandomWorld::import(Owner& owner) {
  std::vector<PageId> mine;
  for (PageId id = 0; id < pages_.size(); ++id) {
    if (pages_[id].owner == owner.id) mine.push_back(id);
  }
  if (mine.empty()) return false;
  const PageId id = mine[below(mine.size())];
  synchronize(owner);
  struct Descriptor {
    ~Descriptor() { close(fd); }
    const int fd;
  } const descriptor{machine_.pool.page(id)->export_fd()};
  const PagePtr page = Page::import(machine_.faulty, descriptor.fd, small_page);
  const auto reservation = std::make_shared<const Reservation>(machine_.faulty, small_page);
  Mapping mapping(machine_.faulty, reservation, {page});
  mapping.map();
  expect(id, reinterpret_cast<std::uint64_t*>(reservation->address()), "imported");
  return true;
}

std::vector<PageId> RandomWorld::unused(const Owner& owner) const {
  std::vector<PageId> ids;
  for (PageId id = 0; id < pages_.size(); ++id) {
    if (pages_[id].owner == owner.id && !pages_[id].in_use) ids.push_back(id);
  }
  return ids;
}

std::size_t RandomWorld::free_pages() const {
  return static_cast<std::size_t>(
      std::count_if(pages_.begin(), pages_.end(), [](auto& page) { return page.owner == 0; }));
}

void RandomWorld::synchronize(const Owner& owner) const {
  CHECK_OK(machine_.device->stream_synchronize(owner.stream));
}

void RandomWorld::finish() {
  audit();
  if (model_->resident()) model_->swap_out();
  model_.reset();
  for (Owner& owner : owners_) {
    for (Place& place : owner.places) place = {};
    machine_.pool.give_back_all(owner.id);
  }
  CHECK_EQ(machine_.pool.free_pages(), pool_pages);
  CHECK_EQ(machine_.device->pending(), 0);
  CHECK_EQ(machine_.wrong, std::string());
}

}  // namespace gpupool
