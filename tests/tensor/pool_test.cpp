// The pool of small objects: blocks are apart, come back, and may change threads.
#include "cairn/tensor/pool.h"

#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "tests/catch.h"

using namespace cairn;

namespace {

// Blocks of `bytes` bytes, each full of its number; frees them and says whether all were intact.
std::vector<unsigned char*> filled(size_t count, size_t bytes) {
  std::vector<unsigned char*> blocks;
  for (size_t i = 0; i < count; ++i) {
    blocks.push_back(static_cast<unsigned char*>(pool_allocate(bytes)));
    std::memset(blocks.back(), static_cast<int>(i % 251), bytes);
  }
  return blocks;
}
bool free_intact(const std::vector<unsigned char*>& blocks, size_t bytes) {
  bool intact = true;
  for (size_t i = 0; i < blocks.size(); ++i) {
    for (size_t k = 0; k < bytes; ++k) intact = intact && blocks[i][k] == i % 251;
    pool_free(blocks[i], bytes);
  }
  return intact;
}

}  // namespace

TEST_CASE("tensor: pool blocks of every size are apart, before and after reuse") {
  for (int round = 0; round < 3; ++round) {
    for (const size_t bytes : {1, 63, 64, 65, 500, 1024, 1025, 5000}) {
      const auto blocks = filled(2000, bytes);  // more than a thread keeps
      CHECK(std::set<unsigned char*>(blocks.begin(), blocks.end()).size() == blocks.size());
      CHECK(free_intact(blocks, bytes));
    }
  }
}

TEST_CASE("tensor: pool blocks may be freed by a thread that never allocated one") {
  for (int round = 0; round < 20; ++round) {
    const auto here = filled(100, 200);
    std::vector<unsigned char*> there;
    bool intact = false;
    std::thread([&] {
      intact = free_intact(here, 200);
      there = filled(150, 200);
    }).join();
    CHECK(intact);
    CHECK(free_intact(there, 200));
  }
}

TEST_CASE("tensor: pooled objects are destroyed once") {
  const auto counter = std::make_shared<int>(0);
  for (int i = 0; i < 10; ++i) {
    const auto object = make_pooled<std::shared_ptr<int>>(counter);
    const auto other = object;
    CHECK(counter.use_count() == 2);
  }
  CHECK(counter.use_count() == 1);
}
