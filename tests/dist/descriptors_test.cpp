// Descriptors between processes, and the memory behind them: limits of the system that are met.
#include "cairn/dist/descriptors.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "cairn/dist/shm_links.h"
#include "cairn/dist/shm_memory.h"
#include "tests/catch.h"
#include "tests/dist/net_support.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using namespace std::chrono_literals;
using Clock = Deadline::Clock;

namespace {

struct Pair {
  Socket a, b;
};

Pair new_pair() {
  std::array<int, 2> ends{};
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) == 0);
  return {Socket(ends[0]), Socket(ends[1])};
}

// The soft limit while it lives.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(int most) {
    getrlimit(RLIMIT_NOFILE, &usual_);
    rlimit few = usual_;
    few.rlim_cur = static_cast<rlim_t>(most);
    setrlimit(RLIMIT_NOFILE, &few);
  }
  ~DescriptorLimit() { setrlimit(RLIMIT_NOFILE, &usual_); }

 private:
  rlimit usual_{};
};

int lowest_free(const Socket& any) {
  const Socket next(dup(any.fd()));
  return next.fd();
}

// Takes so many numbered messages, each with two descriptors, and closes them; how many were right.
int take(const Socket& from, int count) {
  int right = 0;
  for (int i = 0; i < count; ++i) {
    DescriptorMessage message;
    if (recv_descriptors(from, 2, Deadline(20s), "test", message) != Transfer::done) break;
    right += message.number == i && message.descriptors[0] && message.descriptors[1] ? 1 : 0;
  }
  return right;
}

Transfer send(const Socket& to, int number, Milliseconds timeout = 20s) {
  const int descriptors[] = {to.fd(), to.fd()};
  return send_descriptors(to, number, descriptors, Deadline(timeout), "test");
}

int64_t address_space_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == "VmSize:") {
      int64_t kib = 0;
      status >> kib;
      return kib;
    }
  return 0;
}

}  // namespace

TEST_CASE("dist: descriptors wait for room in the connection until the deadline") {
  const Pair pair = new_pair();
  const int small = 1;  // the system takes its least
  setsockopt(pair.a.fd(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  int fit = 0;
  while (send(pair.a, fit, 50ms) == Transfer::done) REQUIRE(++fit < 1000);
  constexpr int kCount = 200;
  REQUIRE(fit < kCount);
  int right = 0;
  std::thread reader([&] { right = take(pair.b, kCount); });
  for (int i = fit; i < kCount; ++i) CHECK(send(pair.a, i) == Transfer::done);
  reader.join();
  CHECK(right == kCount);
}

TEST_CASE("dist: descriptors wait until peers have taken those that are on their way") {
  const Pair pair = new_pair();
  const DescriptorLimit limit(64);
  constexpr int kCount = 60;
  std::atomic<int> sent = 0;
  Transfer last = Transfer::done, late = Transfer::done;
  std::string error;
  std::thread sender([&] {
    // The system lets root have any number. Of this thread alone.
    if (geteuid() == 0) syscall(SYS_setresuid, -1, 65534, -1);
    while (last == Transfer::done && sent < kCount)
      if ((last = send(pair.a, sent)) == Transfer::done) ++sent;
    error = test::error_text([&] {
      for (int i = 0; i < kCount && late == Transfer::done; ++i) late = send(pair.a, i, 50ms);
    });
  });
  std::this_thread::sleep_for(300ms);
  CHECK(sent < kCount);
  CHECK(take(pair.b, kCount) == kCount);
  sender.join();
  CHECK(sent == kCount);
  // Now nobody takes any.
  CHECK_THAT(error, Contains("test: descriptors must go to another process, got: Too many ref"));
}

TEST_CASE("dist: a message that finds too few free descriptors says so and leaves none open") {
  for (const int few : {0, 1}) {
    const Pair pair = new_pair();
    REQUIRE(send(pair.a, 7) == Transfer::done);
    const int before = test::open_descriptors();
    {
      const DescriptorLimit limit(lowest_free(pair.a) + few);
      DescriptorMessage message;
      CHECK_THROWS_WITH(recv_descriptors(pair.b, 2, Deadline(20s), "test", message),
                        Contains("test: a descriptor must be free, got none"));
    }
    CHECK(test::open_descriptors() == before);
    // The connection goes on, and so does its end.
    REQUIRE(send(pair.a, 0) == Transfer::done);
    CHECK(take(pair.b, 1) == 1);
  }
  Pair pair = new_pair();
  pair.b.close();
  CHECK(send(pair.a, 0) == Transfer::closed);
}

TEST_CASE("dist: rank 0 that may open no more descriptors says so while the ranks meet") {
  const auto store = memory_store();
  std::string error;
  std::thread leader([&] {
    error = test::error_text(
        [&] { ShmLinks({.rank = 0, .size = 2, .store = store, .timeout = 20s}, Deadline(20s)); });
  });
  const std::string name = store->get("world/shm/leader", 20s);
  const Socket free(dup(STDERR_FILENO));
  {
    // The last one is for this end of the connection.
    const DescriptorLimit limit(lowest_free(free) + 1);
    const Socket connection = connect_locally(name);
    leader.join();
  }
  CHECK_THAT(error, Contains("a descriptor must be free, got: Too many open files"));
}

TEST_CASE("dist: memory that cannot be mapped takes no addresses") {
  constexpr int64_t kBytes = 64 << 20;
  const test::TempFolder folder;
  const std::string path = folder.write("block", "");
  REQUIRE(truncate(path.c_str(), kBytes) == 0);
  const int64_t before = address_space_kib();
  for (int i = 0; i < 20; ++i) {
    // To be written, it would have to be open for that.
    Socket file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    CHECK_THROWS_WITH(SharedMemory(std::move(file), kBytes),
                      Contains("must succeed, got: Permission denied"));
  }
  CHECK(address_space_kib() - before < 4 * (kBytes >> 10));
}
