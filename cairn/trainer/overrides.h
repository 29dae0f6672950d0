// Whether an object's class overrides a virtual function: a hook that nobody fills need not be
// called between steps that are launched as one. Invariant: the answer is exact where the Itanium
// C++ ABI holds (GCC and Clang on every system but Windows), and "yes" elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace cairn::trainer {

namespace detail {

// The object's entry for a virtual function in its table. By the ABI a pointer to member function
// is two words. On most systems the first is the offset in the table plus 1; on ARM it is the
// offset, and the second's lowest bit tells that the function is virtual.
template <class Base, class Function>
const void* table_entry(const Base& object, Function Base::*function) {
  struct {
    uintptr_t first;
    uintptr_t second;
  } words;
  static_assert(sizeof function == sizeof words);
  std::memcpy(&words, &function, sizeof words);
#if defined(__aarch64__) || defined(__arm__)
  const uintptr_t offset = words.first;
#else
  const uintptr_t offset = words.first - 1;
#endif
  const std::byte* table = nullptr;
  std::memcpy(&table, static_cast<const void*>(&object), sizeof table);
  const void* entry = nullptr;
  std::memcpy(&entry, table + offset, sizeof entry);
  return entry;
}

}  // namespace detail

// Whether the classes of a and b have the same function there.
template <class Base, class Function>
bool same_function(const Base& a, const Base& b, Function Base::*function) {
#ifdef __GXX_ABI_VERSION
  return detail::table_entry(a, function) == detail::table_entry(b, function);
#else
  return false;
#endif
}

// Whether object's class, or one between it and Base, overrides Base's function.
template <class Base, class Function>
bool overrides(const Base& object, Function Base::*function) {
  static const Base plain{};
  return !same_function(object, plain, function);
}

}  // namespace cairn::trainer
