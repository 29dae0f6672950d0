// auto_group: who shares memory with whom, and the backend that follows from it.
#include "cairn/dist/auto_group.h"

#include <algorithm>
#include <set>
#include <utility>

#include "cairn/dist/local_group.h"
#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "cairn/dist/shm_links.h"
#include "cairn/dist/two_level_group.h"

namespace cairn::dist {
namespace {

// For every rank the lowest one that it shares memory with. Each rank listens at a name that nobody
// can guess; who gets through to it runs on the same kernel, in the same network namespace and as
// the same user.
std::vector<int> find_hosts(const GroupOptions& options) {
  const Deadline deadline(options.timeout);
  const auto key = [&](const char* what, int rank) {
    return cat(options.name, "/auto/", what, "/", rank);
  };
  const std::string name = new_local_name();
  const Socket listener = listen_locally(name);
  options.store->set(key("name", options.rank), name);
  int host = options.rank;
  for (int r = 0; r < options.rank && host == options.rank; ++r)
    if (connect_locally(options.store->get(key("name", r), deadline.remaining()))) host = r;
  options.store->set(key("host", options.rank), std::to_string(host));
  std::vector<int> hosts;
  for (int r = 0; r < options.size; ++r) {
    const std::string text = options.store->get(key("host", r), deadline.remaining());
    hosts.push_back(std::atoi(text.c_str()));
  }
  return hosts;
}

}  // namespace

std::shared_ptr<ProcessGroup> group_over_hosts(GroupOptions options, std::vector<int> hosts) {
  check(hosts.size() == static_cast<size_t>(options.size), "auto: hosts must be given for ",
        options.size, " ranks, got ", hosts.size());
  const std::set<int> different(hosts.begin(), hosts.end());
  if (options.size == 1) return local_group(std::move(options));
  if (different.size() == 1) return shm_group(std::move(options));
  if (different.size() == hosts.size()) return ring_group(std::move(options));
  return two_level_group(std::move(options), std::move(hosts));
}

std::shared_ptr<ProcessGroup> auto_group(GroupOptions options) {
  if (options.size <= 1) return local_group(std::move(options));
  check(options.store != nullptr && options.rank >= 0 && options.rank < options.size,
        "auto: a store and a rank below ", options.size, " must be given, got rank ", options.rank,
        options.store ? "" : " and no store");
  std::vector<int> hosts = find_hosts(options);
  return group_over_hosts(std::move(options), std::move(hosts));
}

}  // namespace cairn::dist
