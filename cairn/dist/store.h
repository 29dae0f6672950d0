// Store: a small key-value table that all processes of a run see; where they meet, and where they
// leave word of what went wrong.
// Invariant: every operation of one key is atomic, and every wait has a deadline.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/dist/deadline.h"
#include "cairn/tensor/error.h"

namespace cairn::dist {

// Names follow PyTorch's c10d Store. Keys are 1 to 1024 bytes, values at most 16 MiB, both any
// bytes; others are an Error. A server that cannot be reached is a CommError.
// Safe to be used by several threads at once.
class Store {
 public:
  virtual ~Store() = default;

  // For set() and find(), `timeout` is how long to wait for a server's answer at most; without it
  // that is the store's own time-out.
  virtual void set(std::string_view key, std::string_view value, Milliseconds timeout) = 0;
  // The value, as soon as there is one. CommError `store: key 'k' must be set within 60 s, got
  // nothing` past the timeout.
  virtual std::string get(std::string_view key, Milliseconds timeout) = 0;
  // The value, or nothing where the key is not set now.
  virtual std::optional<std::string> find(std::string_view key, Milliseconds timeout) = 0;
  // Adds to a counter, which is 0 where the key is not set, and returns the sum. The value is
  // decimal text, as get() sees it; Error where it is something else.
  virtual int64_t add(std::string_view key, int64_t delta) = 0;
  // Returns as soon as all keys are set; else a CommError that lists those that are missing.
  virtual void wait(std::span<const std::string> keys, Milliseconds timeout) = 0;
  // Sets the key to `desired` if its value is `expected`, where an empty `expected` also stands for
  // a key that is not set. Returns the value that the key has afterwards (empty: not set).
  virtual std::string compare_set(std::string_view key, std::string_view expected,
                                  std::string_view desired) = 0;
  // Whether the key was there.
  virtual bool delete_key(std::string_view key) = 0;
  virtual int64_t num_keys() = 0;
  // For a group that meets here and has failed: whoever keeps the store for other processes then
  // waits for them only briefly. Not so any more where the group has been made again.
  virtual void note_failure(bool /*failed*/ = true) noexcept {}

  void set(std::string_view key, std::string_view value) { set(key, value, Milliseconds::max()); }
  std::string get(std::string_view key) { return get(key, kDefaultTimeout); }
  std::optional<std::string> find(std::string_view key) { return find(key, Milliseconds::max()); }

  // Returns once ranks 0 … world_size - 1 have all called it with this name; a name serves once.
  // CommError `barrier 'name': 3 of 4 ranks joined within 60 s, missing [2]` past the timeout.
  void barrier(std::string_view name, int rank, int world_size,
               Milliseconds timeout = kDefaultTimeout);
};

// Hands everything on to another store; for those that add something to one.
class ForwardingStore : public Store {
 public:
  explicit ForwardingStore(std::shared_ptr<Store> store) : store_(std::move(store)) {}

  void set(std::string_view key, std::string_view value, Milliseconds timeout) override {
    store_->set(key, value, timeout);
  }
  std::string get(std::string_view key, Milliseconds timeout) override {
    return store_->get(key, timeout);
  }
  std::optional<std::string> find(std::string_view key, Milliseconds timeout) override {
    return store_->find(key, timeout);
  }
  int64_t add(std::string_view key, int64_t delta) override { return store_->add(key, delta); }
  void wait(std::span<const std::string> keys, Milliseconds timeout) override {
    store_->wait(keys, timeout);
  }
  std::string compare_set(std::string_view key, std::string_view expected,
                          std::string_view desired) override {
    return store_->compare_set(key, expected, desired);
  }
  bool delete_key(std::string_view key) override { return store_->delete_key(key); }
  int64_t num_keys() override { return store_->num_keys(); }
  void note_failure(bool failed) noexcept override { store_->note_failure(failed); }

 protected:
  const std::shared_ptr<Store> store_;
};

// Within one process, for tests and for ranks that are threads.
std::shared_ptr<Store> memory_store();

// The same store with `prefix` and '/' before every key; num_keys() counts all of the store's. A
// null store is an Error.
std::shared_ptr<Store> prefix_store(std::string prefix, std::shared_ptr<Store> store);

}  // namespace cairn::dist
