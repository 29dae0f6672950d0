// What all stores share, the store within one process, and the one with a prefix.
#include "cairn/dist/store.h"

#include <condition_variable>
#include <mutex>
#include <utility>

#include "cairn/dist/store_table.h"

namespace cairn::dist {
namespace {

class MemoryStore : public Store {
 public:
  void set(std::string_view key, std::string_view value, Milliseconds) override {
    const std::lock_guard lock(mutex_);
    table_.set(key, value);
    changed_.notify_all();
  }
  std::string get(std::string_view key, Milliseconds timeout) override {
    const std::string keys[] = {std::string(key)};
    std::unique_lock lock(mutex_);
    wait_for(keys, timeout, lock);
    return *table_.find(key);
  }
  std::optional<std::string> find(std::string_view key, Milliseconds) override {
    const std::lock_guard lock(mutex_);
    const StoreTable::Value value = table_.find(key);
    return value ? std::optional(*value) : std::nullopt;
  }
  int64_t add(std::string_view key, int64_t delta) override {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();  // who waits looks again once the lock is free
    return table_.add(key, delta);
  }
  void wait(std::span<const std::string> keys, Milliseconds timeout) override {
    std::unique_lock lock(mutex_);
    wait_for(keys, timeout, lock);
  }
  std::string compare_set(std::string_view key, std::string_view expected,
                          std::string_view desired) override {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
    const StoreTable::Value value = table_.compare_set(key, expected, desired);
    return value ? *value : std::string();
  }
  bool delete_key(std::string_view key) override {
    const std::lock_guard lock(mutex_);
    return table_.erase(key);
  }
  int64_t num_keys() override {
    const std::lock_guard lock(mutex_);
    return table_.size();
  }

 private:
  void wait_for(std::span<const std::string> keys, Milliseconds timeout,
                std::unique_lock<std::mutex>& lock) {
    std::vector<std::string> missing;
    const auto all_set = [&] {
      missing.clear();
      for (const std::string& key : keys)
        if (!table_.find(key)) missing.push_back(key);
      return missing.empty();
    };
    if (!changed_.wait_until(lock, Deadline(sane(timeout)).at(), all_set))
      throw not_set(missing, timeout);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  StoreTable table_;
};

class PrefixStore : public Store {
 public:
  PrefixStore(std::string prefix, std::shared_ptr<Store> store)
      : prefix_(std::move(prefix) + '/'), store_(std::move(store)) {
    check(store_ != nullptr, "prefix_store: store must be given, got none");
  }

  void set(std::string_view key, std::string_view value, Milliseconds timeout) override {
    store_->set(full(key), value, timeout);
  }
  std::string get(std::string_view key, Milliseconds timeout) override {
    return store_->get(full(key), timeout);
  }
  std::optional<std::string> find(std::string_view key, Milliseconds timeout) override {
    return store_->find(full(key), timeout);
  }
  int64_t add(std::string_view key, int64_t delta) override {
    return store_->add(full(key), delta);
  }
  void wait(std::span<const std::string> keys, Milliseconds timeout) override {
    std::vector<std::string> all;
    for (const std::string& key : keys) all.push_back(full(key));
    store_->wait(all, timeout);
  }
  std::string compare_set(std::string_view key, std::string_view expected,
                          std::string_view desired) override {
    return store_->compare_set(full(key), expected, desired);
  }
  bool delete_key(std::string_view key) override { return store_->delete_key(full(key)); }
  int64_t num_keys() override { return store_->num_keys(); }
  void note_failure(bool failed) noexcept override { store_->note_failure(failed); }

 private:
  std::string full(std::string_view key) const {
    check_key(key);
    return cat(prefix_, key);
  }

  std::string prefix_;
  std::shared_ptr<Store> store_;
};

}  // namespace

void Store::barrier(std::string_view name, int rank, int world_size, Milliseconds timeout) {
  check(world_size >= 1 && rank >= 0 && rank < world_size,
        "barrier: rank must be below the world size, got ", rank, " of ", world_size);
  const auto key = [&](int r) { return cat("barrier/", name, "/", r); };
  const Deadline deadline(sane(timeout));
  check(add(key(rank), 1) == 1, "barrier '", name, "': rank ", rank,
        " must join once, got a second call. A name serves once");
  std::vector<std::string> keys;
  keys.reserve(static_cast<size_t>(world_size));
  for (int r = 0; r < world_size; ++r) keys.push_back(key(r));
  try {
    wait(keys, deadline.remaining());
  } catch (const CommError&) {
    std::string missing;
    int joined = 0;
    for (int r = 0; r < world_size; ++r) {
      // Where the server is gone, this throws what happened.
      if (find(key(r)))
        ++joined;
      else
        missing += cat(missing.empty() ? "" : ", ", r);
    }
    if (joined == world_size) return;
    throw CommError(cat("barrier '", name, "': ", joined, " of ", world_size, " ranks joined",
                        " within ", in_words(timeout), ", missing [", missing, "]"));
  }
}

std::shared_ptr<Store> memory_store() { return std::make_shared<MemoryStore>(); }

std::shared_ptr<Store> prefix_store(std::string prefix, std::shared_ptr<Store> store) {
  return std::make_shared<PrefixStore>(std::move(prefix), std::move(store));
}

}  // namespace cairn::dist
