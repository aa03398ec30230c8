// Random operations on pages, mappings and swaps, beside a plain model of what must come of them.
//
// Every page carries the stamp of its owner and a generation in every word, or a byte made of the
// two that it was filled with; a page that turns up where it does not belong, or in a state it
// should not have, shows.
#pragma once

#include <unistd.h>

#include <array>
#include <set>

#include "stepped_models.h"
#include "transfer/scrub.h"

namespace gpupool {

class RandomWorld {
 public:
  static constexpr const char* operations[] = {"acquire", "give back", "map",     "unmap",  "stamp",
                                               "look",    "read",      "reserve", "import", "swap",
                                               "refusal", "scrub",     "resize"};
  static constexpr std::size_t kinds = std::size(operations);
  using Wrap = std::function<DriverPtr(DriverPtr)>;

  // `wrap` may put a driver with a bug of its own in between.
  explicit RandomWorld(std::uint64_t seed, const Wrap& wrap = nullptr);
  ~RandomWorld();
  // One operation, with a driver call failing in some; throws where the plain model differs.
  void step();
  // Everything goes back, and nothing is left.
  void finish();

  std::array<std::uint64_t, kinds> done{};
  std::uint64_t injected = 0;

 private:
  static constexpr std::size_t pool_pages = 32, owner_count = 4, place_count = 3, place_pages = 4;
  static constexpr std::size_t page_words = small_page / 8;

  struct Content {
    // A byte of its own for the page that this owner fills now; never zero, as clean pages are.
    [[nodiscard]] static std::uint8_t fill_value(OwnerId owner, std::uint64_t generation) {
      const std::uint64_t mixed = (owner << 56 ^ generation) * 0x9e3779b97f4a7c15;
      return static_cast<std::uint8_t>(1 + (mixed ^ mixed >> 32) % 255);
    }
    enum class Kind { unknown, filled, stamped } kind = Kind::filled;
    std::uint64_t value = 0xA5A5A5A5A5A5A5A5;  // poison, as a page is created
    [[nodiscard]] std::uint64_t word(std::size_t i) const {
      return kind == Kind::stamped ? value + i : value;
    }
    [[nodiscard]] bool is_zero() const { return kind == Kind::filled && value == 0; }
    [[nodiscard]] bool fits(const std::uint64_t* words) const {
      for (std::size_t i = 0; kind != Kind::unknown && i < page_words; ++i) {
        if (words[i] != word(i)) return false;
      }
      return true;
    }
  };
  struct PlainPage {
    OwnerId owner = 0;  // 0: nobody
    bool in_use = false;
    Content content;
  };
  struct Place {
    ReservationPtr reservation;
    std::unique_ptr<Mapping> mapping;
    std::vector<PageId> pages;
    bool mapped = false;
    [[nodiscard]] std::uint64_t* words(std::size_t page) const {
      return reinterpret_cast<std::uint64_t*>(reservation->address() + page * small_page);
    }
  };
  struct Owner {
    OwnerId id = 0;
    StreamHandle stream = nullptr;
    std::unique_ptr<HostMemory> staging;
    std::array<Place, place_count> places;
  };
  static constexpr OwnerId model_owner = 100;

  bool attempt();
  // Each says whether there was anything to do.
  bool acquire(Owner& owner);
  bool give_back(Owner& owner);
  bool map(Owner& owner, Place& place);
  bool unmap(Owner& owner, Place& place);
  bool stamp(Owner& owner, Place& place);
  bool look(Owner& owner, Place& place);
  bool read(Owner& owner, Place& place);
  bool reserve(Place& place);
  bool import(Owner& owner);
  bool swap();
  bool refusal(Owner& owner);
  bool scrub(Owner& owner);
  bool resize();

  std::uint64_t below(std::uint64_t end) { return machine_.random.below(end); }
  void settle_scrubber();
  void forget_free_pages();
  void follow_model();
  void note_clean();
  [[nodiscard]] bool is_clean(PageId id) const;
  std::vector<PageId> unused(const Owner& owner) const;
  std::size_t free_pages() const;
  void synchronize(const Owner& owner) const;
  void expect(PageId id, const std::uint64_t* words, const char* where) const;
  void audit() const;

  SteppedMachine machine_;
  std::unique_ptr<Scrubber> scrubber_;
  bool scrub_failed_ = false;
  std::vector<PlainPage> pages_;
  std::array<Owner, owner_count> owners_;
  std::unique_ptr<SteppedModel> model_;
  std::uint64_t generation_ = 0;
};

}  // namespace gpupool
