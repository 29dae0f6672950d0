// What all stores share.
#include "cairn/dist/store.h"

namespace cairn::dist {

void Store::barrier(std::string_view name, int rank, int world_size, Milliseconds timeout) {
  check(world_size >= 1 && rank >= 0 && rank < world_size,
        "barrier: rank must be below the world size, got ", rank, " of ", world_size);
  const auto key = [&](int r) { return cat("barrier/", name, "/", r); };
  const Deadline deadline(timeout);
  set(key(rank), "1");
  std::vector<std::string> keys;
  for (int r = 0; r < world_size; ++r) keys.push_back(key(r));
  try {
    wait(keys, deadline.remaining());
  } catch (const CommError&) {
    std::string missing;
    int joined = 0;
    for (int r = 0; r < world_size; ++r) {
      if (find(key(r)))
        ++joined;
      else
        missing += cat(missing.empty() ? "" : ", ", r);
    }
    if (joined == world_size) return;
    throw CommError(cat("barrier '", name, "': ", joined, " of ", world_size,
                        " ranks joined within ", timeout.count(), " ms, missing [", missing, "]"));
  }
}

}  // namespace cairn::dist
