// The assertions themselves: one that cannot fail says nothing.
#include "check.h"

namespace {

template <typename Body>
bool fails(Body body) {
  try {
    body();
  } catch (const check::Failure&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(what_throws_nothing_fails) {
  CHECK(fails([] { CHECK_THROWS(std::exception, 1); }));
  CHECK(fails([] { CHECK_THROWS(std::runtime_error, 1); }));
}

TEST(a_failure_within_is_not_what_was_to_be_thrown) {
  const auto wrong = [] { CHECK_EQ(1, 2); };
  CHECK(fails([&] { CHECK_THROWS(std::exception, wrong()); }));
  CHECK(fails([&] { CHECK_THROWS(std::runtime_error, wrong()); }));
}

TEST(what_throws_is_taken_by_its_type) {
  const auto broken = [] { throw std::logic_error("broken"); };
  CHECK(!fails([&] { CHECK_THROWS(std::logic_error, broken()); }));
  CHECK(!fails([&] { CHECK_THROWS(std::exception, broken()); }));
  bool passed_on = false;
  try {
    CHECK_THROWS(std::runtime_error, broken());
  } catch (const std::logic_error&) {
    passed_on = true;
  }
  CHECK(passed_on);
}
