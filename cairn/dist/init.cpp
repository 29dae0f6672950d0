// init_process_group(): the store, then the backend.
#include "cairn/dist/init.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>

#include "cairn/dist/auto_group.h"
#include "cairn/dist/local_group.h"
#include "cairn/dist/owner.h"
#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "cairn/dist/socket.h"
#include "cairn/dist/suggest.h"
#include "cairn/dist/tcp_store.h"

namespace cairn::dist {
namespace {

using Factory = std::shared_ptr<ProcessGroup> (*)(GroupOptions);
struct Backend {
  const char* name;
  Factory make;
};
constexpr std::array kBackends = {Backend{"auto", auto_group}, Backend{"local", local_group},
                                  Backend{"ring", ring_group}, Backend{"shm", shm_group}};

Factory factory_of(const std::string& name) {
  std::array<const char*, kBackends.size()> names{};
  for (size_t i = 0; i < kBackends.size(); ++i) {
    names[i] = kBackends[i].name;
    if (name == names[i]) return kBackends[i].make;
  }
  fail("init_process_group: backend must be ", one_of(names), ", got '", name, "'",
       did_you_mean(name, names));
}

// The run's store as its groups hold it: the last one that lets go of rank 0's waits for the
// others.
class RunStore : public ForwardingStore {
 public:
  RunStore(std::shared_ptr<TcpStore> store, Milliseconds timeout)
      : ForwardingStore(store), tcp_(std::move(store)), timeout_(timeout) {}

  ~RunStore() override {
    if (tcp_->server() == nullptr) return;
    // Each rank has one connection; a dead one's has ended.
    constexpr Milliseconds kFailing{1000}, kLook{5};
    const bool failing = failed_ || std::uncaught_exceptions() > 0;
    const Deadline deadline(failing ? std::min(kFailing, timeout_) : timeout_);
    while (tcp_->server()->connections() > 1 && !deadline.expired())
      std::this_thread::sleep_for(kLook);
  }

  void note_failure(bool failed) noexcept override { failed_ = failed; }

 private:
  const std::shared_ptr<TcpStore> tcp_;
  const Milliseconds timeout_;
  std::atomic<bool> failed_ = false;
};

// The master address as rank 0 listens on it and as other hosts reach it. Many systems let a host's
// own name stand for loopback (127.0.1.1), which would leave the others waiting.
std::string own_address(const ClusterEnvironment& e, const InitOptions& o) {
  const std::vector<Endpoint> all = resolve(e.master_address, 0, Deadline(o.timeout));
  for (const Endpoint& endpoint : all)
    if (!is_loopback(endpoint.address)) return endpoint.address;
  const std::string& first = all.front().address;
  check(e.master_address == first || e.master_address == "localhost",
        "init_process_group: address of the first host must be one that other hosts reach, got ",
        e.master_address, ", which is ", first,
        " here; give the address itself, by --master-address of cairn launch or MASTER_ADDR");
  return first;
}

std::shared_ptr<TcpStore> meet(const ClusterEnvironment& e, const InitOptions& o) {
  check(e.master_port > 0, "init_process_group: master port must be 1 to 65535, got ",
        e.master_port);
  const bool one_host = e.num_nodes == 1;
  TcpStoreOptions store;
  // What a host calls itself may be an address that others see; alone it has loopback.
  store.host = one_host && o.bind.empty() ? "127.0.0.1" : e.master_address;
  store.port = e.master_port;
  store.is_server = e.rank == 0;
  store.bind = o.bind;
  if (store.is_server && !one_host && o.bind.empty()) store.bind = own_address(e, o);
  store.world_size = e.world_size;
  store.rank = e.rank;
  store.run_id = e.run_id;
  store.secret = e.secret;
  store.timeout = o.timeout;
  return tcp_store(std::move(store));
}

}  // namespace

std::shared_ptr<ProcessGroup> init_process_group(const ClusterEnvironment& e,
                                                 const InitOptions& o) {
  const Factory make = factory_of(o.backend);
  check(o.timeout.count() > 0, "init_process_group: timeout must be above 0, got ",
        o.timeout.count(), " ms");
  check(e.world_size >= 1 && e.rank >= 0 && e.rank < e.world_size,
        "init_process_group: rank must be below the world size, got ", e.rank, " of ",
        e.world_size);
  GroupOptions group;
  group.rank = e.rank;
  group.size = e.world_size;
  group.timeout = o.timeout;
  group.secret = e.secret;
  if (e.world_size == 1) {
    group.store = memory_store();
  } else {
    auto store = meet(e, o);
    group.address = o.address.empty() ? store->local_address() : o.address;
    // Rank 0 reaches its own store by loopback where that listens everywhere.
    const bool everywhere = store->server() != nullptr && is_wildcard(store->server()->address());
    if (o.address.empty() && everywhere && e.num_nodes > 1) group.address = own_address(e, o);
    group.store = make_owned<RunStore>(std::move(store), o.timeout);
  }
  return make(std::move(group));
}

// Another name has other keys: what is said of the group that failed is not heard in this one.
std::shared_ptr<ProcessGroup> rejoin(const ProcessGroup& failed, int number, const InitOptions& o) {
  GroupOptions options = failed.options();
  options.name = cat("world/", number);
  options.timeout = o.timeout;
  auto group = factory_of(o.backend)(std::move(options));
  group->options().store->note_failure(false);
  return group;
}

}  // namespace cairn::dist
