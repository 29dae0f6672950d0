// The caching allocator's numbers, its guards, and storages' owners and versions.
#include "cairn/tensor/allocator.h"

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "cairn/tensor/cpu_allocator.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

TEST_CASE("tensor: memory statistics follow allocations") {
  const MemoryStats before = memory_stats();
  {
    const Tensor a = empty({1000, 1000});
    const MemoryStats during = memory_stats();
    CHECK(during.allocations == before.allocations + 1);
    const int64_t grown = during.allocated - before.allocated;
    CHECK(grown >= 4'000'000);
    CHECK(grown <= 4'500'000);  // at most an eighth is waste
    CHECK(during.peak >= during.allocated);
    CHECK(reinterpret_cast<uintptr_t>(a.raw_data()) % 64 == 0);
  }
  const MemoryStats after = memory_stats();
  CHECK(after.allocated == before.allocated);
  CHECK(after.cached >= 4'000'000);
}

TEST_CASE("tensor: repeated work asks the system for nothing") {
  const auto work = [] {
    std::vector<Tensor> held;
    for (int64_t size : {1, 100, 5000, 70000, 1 << 20}) held.push_back(zeros({size}));
    return raw::clone(held.back());
  };
  work();
  const int64_t system = memory_stats().system_allocations;
  for (int round = 0; round < 10; ++round) work();
  CHECK(memory_stats().system_allocations == system);
}

TEST_CASE("tensor: the peak can be reset and the cache given back") {
  Allocator* allocator = cpu_allocator();
  { const Tensor big = empty({3 << 20}); }
  allocator->reset_peak();
  CHECK(memory_stats().peak == memory_stats().allocated);
  allocator->release_cached();
  CHECK(memory_stats().cached == 0);
}

TEST_CASE("tensor: blocks of every size are aligned, apart and writable") {
  Allocator* allocator = cpu_allocator();
  std::vector<std::pair<void*, int64_t>> blocks;
  for (int64_t bytes : {0, 1, 63, 64, 65, 1000, 4097, 2 << 20, (2 << 20) + 1}) {
    void* block = allocator->allocate(bytes);
    CHECK(reinterpret_cast<uintptr_t>(block) % 64 == 0);
    std::memset(block, static_cast<int>(blocks.size()), static_cast<size_t>(bytes));
    blocks.emplace_back(block, bytes);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto* bytes = static_cast<const unsigned char*>(blocks[i].first);
    for (int64_t k = 0; k < blocks[i].second; ++k) REQUIRE(bytes[k] == i);
    allocator->deallocate(blocks[i].first, blocks[i].second);
  }
}

TEST_CASE("tensor: allocator checks poison new memory and see writes past the end") {
  const int64_t before = guard_violations();
  set_allocator_checks(true);
  {
    const Tensor t = empty({4});
    CHECK(std::isnan(t.data<float>()[3]));
    const Tensor d = empty({1}, {.dtype = DType::bf16});
    CHECK(std::isnan(static_cast<float>(d.data<bfloat16>()[0])));
  }
  CHECK(guard_violations() == before);
  {
    const Tensor t = empty({4});
    static_cast<unsigned char*>(t.raw_data())[16] = 1;  // inside the fence, which is memory of ours
  }
  set_allocator_checks(false);
  CHECK(guard_violations() == before + 1);
}

TEST_CASE("tensor: threads may allocate side by side") {
  const int64_t before = memory_stats().allocated;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([i] {
      for (int round = 0; round < 500; ++round) {
        const Tensor t = full({100 + i}, i);
        if (t.data<float>()[99] != static_cast<float>(i)) throw std::runtime_error("shared block");
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(memory_stats().allocated == before);
}

TEST_CASE("tensor: blocks may be freed on another thread and keep their sizes") {
  Allocator* allocator = cpu_allocator();
  const MemoryStats before = memory_stats();
  std::vector<std::pair<void*, int64_t>> blocks;
  int64_t bytes = 1;
  for (int i = 0; i < 200; ++i, bytes += bytes / 8 + 7)
    if (bytes < 1 << 24) blocks.emplace_back(allocator->allocate(bytes), bytes);
  const int64_t held = memory_stats().allocated - before.allocated;
  int64_t wanted = 0;
  for (const auto& block : blocks) wanted += block.second;
  CHECK(held >= wanted);
  std::thread([&] {
    for (const auto& [block, size] : blocks) allocator->deallocate(block, size);
  }).join();
  const MemoryStats after = memory_stats();
  CHECK(after.allocated == before.allocated);
  CHECK(after.peak >= before.allocated + held);
  // The same sizes again come from the lists.
  for (auto& [block, size] : blocks) block = allocator->allocate(size);
  CHECK(memory_stats().system_allocations == after.system_allocations);
  CHECK(memory_stats().allocated == before.allocated + held);
  for (const auto& [block, size] : blocks) allocator->deallocate(block, size);
}

TEST_CASE("tensor: a storage keeps its owner alive and counts in-place writes") {
  auto owner = std::make_shared<int>(1);
  std::weak_ptr<int> watch = owner;
  float memory[2] = {1, 2};
  {
    const Tensor t(std::make_shared<Storage>(memory, 8, kCPU, std::move(owner)), DType::f32, {2},
                   {1}, 0);
    CHECK_FALSE(watch.expired());
    CHECK(t.version() == 0);
    t.bump_version("relu_");
    CHECK(t.version() == 1);
    CHECK(raw::view(t, {2, 1}).version() == 1);
    CHECK(std::string(t.storage()->last_writer()) == "relu_");
  }
  CHECK(watch.expired());
}
