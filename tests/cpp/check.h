// The few assertions these tests need, so that they build with a compiler and CMake alone.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  std::function<void()> body;
};

std::vector<Test>& tests();

struct Register {
  Register(const char* name, std::function<void()> body) {
    tests().push_back({name, std::move(body)});
  }
};

// Places in the source where something was checked, each counted once.
inline std::atomic<int>& sites() {
  static std::atomic<int> count{0};
  return count;
}
// How many of them a program must reach, or it fails: one whose tests got lost passes too easily.
inline int& sites_min() {
  static int least = 0;
  return least;
}
struct AtLeast {
  explicit AtLeast(int checks) { sites_min() = checks; }
};
template <typename Site>  // a lambda: its type is the place
void reached(Site) {
  static const int site = ++sites();
  static_cast<void>(site);
}

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename Exception, typename Attempt>
bool throws(Attempt attempt) {
  try {
    attempt();
  } catch (const Failure&) {
    throw;
  } catch (const Exception&) {
    return true;
  }
  return false;
}

template <typename T>
std::string text(const T& value) {
  std::ostringstream out;
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else if constexpr (requires { out << value; }) {
    out << value;
  } else {
    out << "(a value)";
  }
  return out.str();
}

}  // namespace check

#define TEST(name)                                      \
  static void name();                                   \
  static const check::Register reg_##name(#name, name); \
  static void name()
#define CHECK(...) \
  if (check::reached([] {}); !(__VA_ARGS__)) check::fail(__FILE__, __LINE__, #__VA_ARGS__)
#define CHECK_EQ(left, right)                                              \
  if (const auto l = (check::reached([] {}), (left));                      \
      !(l == std::remove_const_t<decltype(l)>(right)))                     \
  check::fail(__FILE__, __LINE__,                                          \
              #left " == " #right ": it is " + check::text(l) + ", not " + \
                  check::text(std::remove_const_t<decltype(l)>(right)))
// A Failure is a std::exception, but never the one that is asked for.
#define CHECK_THROWS(type, ...)                                                             \
  if (check::reached([] {}); !check::throws<type>([&] { static_cast<void>(__VA_ARGS__); })) \
  check::fail(__FILE__, __LINE__, #__VA_ARGS__ " threw nothing")
