// What the pages of a random world hold: written, looked at and compared.
#include "random_world.h"

namespace gpupool {

bool RandomWorld::stamp(Owner& owner, Place& place) {
  if (!place.mapped) return false;
  const std::size_t at = below(place.pages.size());
  auto* words = place.words(at);
  const DevicePtr address = place.reservation->address() + at * small_page;
  Content content{Content::Kind::stamped, owner.id << 56 | ++generation_ << 12};
  switch (below(3)) {
    case 0:
      CHECK_OK(machine_.device->launch(owner.stream, {{address, small_page}}, [=] {
        for (std::size_t i = 0; i < page_words; ++i) words[i] = content.word(i);
      }));
      break;
    case 1: {
      synchronize(owner);  // what the staging held has gone
      auto* staged = reinterpret_cast<std::uint64_t*>(owner.staging->data());
      for (std::size_t i = 0; i < page_words; ++i) staged[i] = content.word(i);
      CHECK_OK(machine_.device->copy_to_device(address, staged, small_page, owner.stream));
      break;
    }
    default: {
      const auto value = Content::fill_value(owner.id, generation_);
      content = {Content::Kind::filled, std::uint64_t{0x0101010101010101} * value};
      CHECK_OK(machine_.device->fill(address, value, small_page, owner.stream));
    }
  }
  pages_[place.pages[at]].content = content;
  return true;
}

// On the stream, so that it is what the page holds by then that counts.
bool RandomWorld::look(Owner& owner, Place& place) {
  if (!place.mapped) return false;
  const std::size_t at = below(place.pages.size());
  const PageId id = place.pages[at];
  CHECK_OK(machine_.device->launch(
      owner.stream, {{place.reservation->address() + at * small_page, small_page}},
      [this, id, words = place.words(at), content = pages_[id].content] {
        if (!content.fits(words)) machine_.wrong = "page " + std::to_string(id) + " on a stream";
      }));
  return true;
}

bool RandomWorld::read(Owner& owner, Place& place) {
  if (!place.mapped) return false;
  const std::size_t at = below(place.pages.size());
  synchronize(owner);
  CHECK_OK(machine_.device->copy_to_host(owner.staging->data(),
                                         place.reservation->address() + at * small_page, small_page,
                                         owner.stream));
  synchronize(owner);
  expect(place.pages[at], reinterpret_cast<std::uint64_t*>(owner.staging->data()), "copied out");
  return true;
}

void RandomWorld::expect(PageId id, const std::uint64_t* words, const char* where) const {
  if (!pages_[id].content.fits(words)) {
    check::fail(__FILE__, __LINE__,
                "page " + std::to_string(id) + ", " + where + ", begins with " +
                    std::to_string(words[0]) + ", not " +
                    std::to_string(pages_[id].content.word(0)));
  }
}

void RandomWorld::audit() const {
  CHECK_EQ(machine_.pool.free_pages(), free_pages());
  for (const OwnerId owner : {OwnerId{1}, OwnerId{2}, OwnerId{3}, OwnerId{4}, model_owner}) {
    std::vector<PageId> ids;
    for (PageId id = 0; id < pages_.size(); ++id) {
      if (pages_[id].owner == owner) ids.push_back(id);
    }
    CHECK(machine_.pool.owned(owner) == ids);
  }
  for (const Owner& owner : owners_) {
    synchronize(owner);
    for (const Place& place : owner.places) {
      for (std::size_t i = 0; place.mapped && i < place.pages.size(); ++i) {
        expect(place.pages[i], place.words(i), "in its place");
      }
    }
  }
}

}  // namespace gpupool
