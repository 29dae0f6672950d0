// The store over TCP between ranks that belong together: joining, addresses, ends of processes,
// limits. Ranks are threads with a connection each; where a server must die, it is a process.
#include "cairn/dist/tcp_store.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <future>
#include <thread>

#include "cairn/dist/store_table.h"
#include "tests/catch.h"
#include "tests/dist/net_support.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;
using namespace std::chrono_literals;

namespace {

using Clock = Deadline::Clock;

// What tcp_store() throws on each rank, or ""; all are called at once, with their own options.
std::vector<std::string> join_all(const std::vector<TcpStoreOptions>& options) {
  std::vector<std::string> errors(options.size());
  std::vector<std::shared_ptr<Store>> stores(options.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < options.size(); ++i)
    threads.emplace_back([&, i] {
      try {
        stores[i] = tcp_store(options[i]);
      } catch (const Error& error) {
        errors[i] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

// A server in this process, and what its clients need.
TcpStoreOptions client_of(const TcpStoreServer& server, int rank, int world_size,
                          Milliseconds timeout = 60s) {
  return {.host = server.address(),
          .port = server.port(),
          .world_size = world_size,
          .rank = rank,
          .timeout = timeout};
}

// A port that was free a moment ago.
int free_port() { return listen_on({"127.0.0.1", 0}).local().port; }

bool becomes(const std::function<bool()>& condition) {
  const Deadline deadline(20s);
  while (!condition() && !deadline.expired()) std::this_thread::sleep_for(2ms);
  return condition();
}

// This program in another process, which serves a store until it is ended.
class ServerProcess {
 public:
  ServerProcess() {
    const std::string file = folder_.path("port");
    setenv("CAIRN_TEST_PORT_FILE", file.c_str(), 1);
    const char* const arguments[] = {"cairn_tests", "helper: a store's server", nullptr};
    posix_spawn_file_actions_t quiet;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    const int failed = posix_spawn(&pid_, "/proc/self/exe", &quiet, nullptr,
                                   const_cast<char**>(arguments), environ);
    posix_spawn_file_actions_destroy(&quiet);
    REQUIRE(failed == 0);
    REQUIRE(becomes([&] { return std::ifstream(file) >> port_ && port_ > 0; }));
  }
  ~ServerProcess() { end(SIGKILL); }

  int port() const { return port_; }
  // Returns once it stands still.
  void stop() const {
    kill(pid_, SIGSTOP);
    waitpid(pid_, nullptr, WUNTRACED);
  }
  void go_on() const { kill(pid_, SIGCONT); }
  void end(int signal) {
    if (pid_ <= 0) return;
    kill(pid_, signal);
    waitpid(std::exchange(pid_, 0), nullptr, 0);
  }

 private:
  test::TempFolder folder_;
  pid_t pid_ = 0;
  int port_ = 0;
};

}  // namespace

// Not a test: what ServerProcess runs.
TEST_CASE("helper: a store's server", "[.]") {
  const char* const file = std::getenv("CAIRN_TEST_PORT_FILE");
  if (file == nullptr) return;
  const TcpStoreServer server({});
  const std::string partial = std::string(file) + ".part";
  std::ofstream(partial) << server.port() << std::endl;
  std::rename(partial.c_str(), file);
  std::this_thread::sleep_for(120s);
}

TEST_CASE("dist: tcp_store returns once all ranks have come") {
  const int port = free_port();
  std::vector<TcpStoreOptions> options;
  for (int rank = 0; rank < 5; ++rank)
    options.push_back({.port = port, .is_server = rank == 0, .world_size = 5, .rank = rank});
  std::atomic<int> come = 0, early = 0;
  std::vector<std::string> got(5);
  std::vector<std::thread> threads;
  for (int rank = 4; rank >= 0; --rank)
    threads.emplace_back([&, rank] {
      std::this_thread::sleep_for(rank * 10ms);
      ++come;
      const auto store = tcp_store(options[static_cast<size_t>(rank)]);
      if (come < 5) ++early;
      store->set(cat("from ", rank), cat(rank));
      got[static_cast<size_t>(rank)] = store->get(cat("from ", (rank + 1) % 5));
      store->barrier("end", rank, 5);
      // The server goes last, so that no answer is lost.
      if (rank == 0) std::this_thread::sleep_for(100ms);
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(early == 0);
  CHECK(got == std::vector<std::string>{"1", "2", "3", "4", "0"});
}

TEST_CASE("dist: a rank that does not come is named on all others by the deadline") {
  const int port = free_port();
  std::vector<TcpStoreOptions> options;
  for (const int rank : {0, 1, 3})
    options.push_back(
        {.port = port, .is_server = rank == 0, .world_size = 4, .rank = rank, .timeout = 700ms});
  const auto start = Clock::now();
  for (const std::string& error : join_all(options))
    CHECK(error == "tcp_store: all ranks must join within 700 ms, got 3/4 joined, missing [2]");
  CHECK(Clock::now() - start < 5s);
}

TEST_CASE("dist: world sizes that differ are an error at once, on all ranks") {
  const TcpStoreServer server({.world_size = 3});
  const auto start = Clock::now();
  const auto errors = join_all({client_of(server, 0, 3), client_of(server, 1, 4)});
  CHECK(errors[0] == "tcp_store: world_size must be 3 as on rank 0, got 4 on rank 1");
  CHECK(errors[1] == errors[0]);
  // Whoever comes later hears the same.
  CHECK(join_all({client_of(server, 2, 3)})[0] == errors[0]);
  CHECK(Clock::now() - start < 20s);

  // Where the server knows none, the first rank's counts.
  const TcpStoreServer open({});
  const auto first =
      std::async(std::launch::async, [&] { return join_all({client_of(open, 1, 2)})[0]; });
  REQUIRE(becomes([&] { return open.connections() == 1; }));
  std::this_thread::sleep_for(50ms);
  CHECK_THROWS_WITH(tcp_store(client_of(open, 0, 3)),
                    "tcp_store: world_size must be 2 as on rank 1, got 3 on rank 0");
}

TEST_CASE("dist: a rank that comes twice is an error at once, on all ranks") {
  const TcpStoreServer server({.world_size = 3});
  const auto errors =
      join_all({client_of(server, 0, 3), client_of(server, 1, 3), client_of(server, 1, 3)});
  for (const std::string& error : errors)
    CHECK_THAT(error,
               StartsWith("tcp_store: every rank must join once, got rank 1 from 127.0.0.1:"));
}

TEST_CASE("dist: a late stranger to a whole run is refused alone, and a rank may come back") {
  const TcpStoreServer server({.world_size = 2});
  std::shared_ptr<Store> one;
  const auto other =
      std::async(std::launch::async, [&] { one = tcp_store(client_of(server, 1, 2)); });
  const auto zero = tcp_store(client_of(server, 0, 2));
  other.wait();
  CHECK_THROWS_WITH(tcp_store(client_of(server, 1, 2)), Contains("every rank must join once"));
  CHECK_THROWS_WITH(tcp_store(client_of(server, 1, 3)), Contains("world_size must be 2"));
  zero->set("k", "v");
  CHECK(one->get("k") == "v");
  one.reset();
  REQUIRE(becomes([&] { return server.connections() == 1; }));
  CHECK(tcp_store(client_of(server, 1, 2))->get("k") == "v");
}

TEST_CASE("dist: tcp_store's options are checked before anything is opened") {
  const auto message = [](const TcpStoreOptions& options) { return join_all({options})[0]; };
  CHECK(message({.port = 1, .world_size = 4, .rank = 4}) ==
        "tcp_store: rank must be below the world size 4, got 4");
  CHECK(message({.port = 1, .world_size = 4, .rank = -1}) ==
        "tcp_store: rank must be below the world size 4, got -1");
  CHECK(message({.port = 1, .world_size = 0, .rank = 1}) ==
        "tcp_store: rank must be below the world size 0, got 1");
  CHECK(message({.port = 1, .world_size = -2}) ==
        "tcp_store: world_size must be at least 0, got -2");
  CHECK(message({.port = 0}) == "tcp_store: port must be 1 to 65535, got 0");
  CHECK(message({.port = 70000, .is_server = true}) ==
        "tcp_store: port must be 0 to 65535, got 70000");
  CHECK(message({.port = 1, .timeout = 0ms}) == "tcp_store: timeout must be above 0 ms, got 0");
}

TEST_CASE("dist: a port that is taken is named, and 0 finds a free one") {
  const Socket other = listen_on({"127.0.0.1", 0});
  const int port = other.local().port;
  const auto start = Clock::now();
  CHECK_THROWS_WITH(tcp_store({.port = port, .is_server = true}),
                    Contains(cat("port ", port, " of 127.0.0.1 must be free, got one in use")));
  CHECK(Clock::now() - start < 10s);
  const auto first = tcp_store({.is_server = true}), second = tcp_store({.is_server = true});
  CHECK(first->server_port() > 0);
  CHECK(first->server_port() != second->server_port());
  CHECK(first->server_port() == first->server()->port());
}

TEST_CASE("dist: nothing but loopback is listened on unless another address is given") {
  CHECK(TcpStoreServer({}).address() == "127.0.0.1");
  CHECK(tcp_store({.is_server = true})->server()->address() == "127.0.0.1");
  CHECK(is_loopback(tcp_store({.host = "localhost", .is_server = true})->server()->address()));
  CHECK_THROWS_WITH(tcp_store({.host = "192.0.2.1", .is_server = true}),
                    Contains("bind must say on which address to listen for 192.0.2.1"));
  CHECK_THROWS_WITH(TcpStoreServer({.bind = "0.0.0.0"}),
                    Contains("secret must be given for 0.0.0.0, which other machines reach"));
  CHECK_THROWS_WITH(TcpStoreServer({.bind = "192.0.2.1", .secret = "s"}),
                    Contains("must be an address of this machine"));
  const auto everywhere = tcp_store({.is_server = true, .bind = "0.0.0.0", .secret = "s"});
  CHECK(everywhere->server()->address() == "0.0.0.0");
  CHECK(everywhere->server_address() == "127.0.0.1");
  // An address of each interface, by the interface's name, and what the peer then sees of it.
  for (const Interface& interface : interfaces()) {
    INFO(interface.name << " " << interface.address);
    const auto store = tcp_store({.is_server = true, .bind = interface.address, .secret = "s"});
    CHECK(store->server()->address() == interface.address);
    CHECK(store->server_address() == interface.address);
    CHECK(store->local_address() == interface.address);
    const TcpStoreServer by_name({.bind = interface.name, .secret = "s"});
    CHECK_FALSE(is_wildcard(by_name.address()));
  }
}

TEST_CASE("dist: a machine with IPv6 alone") {
  std::shared_ptr<TcpStore> server;
  try {
    server = tcp_store({.host = "::1", .is_server = true});
  } catch (const CommError& error) {
    // No IPv6 here.
    CHECK_THAT(error.what(), Contains("[::1]:0 must be an address of this machine"));
    return;
  }
  CHECK(server->server()->address() == "::1");
  const auto client = tcp_store({.host = "::1", .port = server->server_port()});
  client->set("k", "v");
  CHECK(server->get("k") == "v");
}

TEST_CASE("dist: a host that has no address, and one that does not answer") {
  const auto start = Clock::now();
  CHECK_THROWS_WITH(tcp_store({.host = "no-such-host.invalid", .port = 29500, .timeout = 2s}),
                    Contains("resolve: host 'no-such-host.invalid' must have an address, got: "));
  CHECK_THROWS_WITH(tcp_store({.port = free_port(), .timeout = 200ms}),
                    Contains("must answer within 200 ms, got: Connection refused") &&
                        Contains("; the run's store, which rank 0 keeps, must be there"));
  CHECK(Clock::now() - start < 20s);
}

TEST_CASE("dist: a long get does not hold up other threads of the same store") {
  const auto store = tcp_store({.is_server = true});
  std::vector<std::thread> waiting;
  std::atomic<int> got = 0;
  for (int i = 0; i < 4; ++i)
    waiting.emplace_back([&] { got += store->get("later", 60s) == "v" ? 1 : 0; });
  for (int i = 0; i < 100; ++i) store->add("n", 1);
  CHECK(got == 0);
  store->set("later", "v");
  for (std::thread& thread : waiting) thread.join();
  CHECK(got == 4);
}

TEST_CASE("dist: a server that dies is an error within a second for all who wait") {
  ServerProcess server;
  const auto store = tcp_store({.port = server.port()});
  const auto other = tcp_store({.port = server.port()});
  std::vector<std::future<std::string>> waiting;
  for (int i = 0; i < 3; ++i)
    waiting.push_back(std::async(std::launch::async, [&, i] {
      try {
        if (i == 2) other->barrier("b", 0, 2, 60s);
        return store->get("k", 60s);
      } catch (const CommError& error) {
        return std::string(error.what());
      }
    }));
  std::this_thread::sleep_for(100ms);
  const auto start = Clock::now();
  server.end(SIGKILL);
  for (auto& text : waiting) CHECK_THAT(text.get(), Contains("must be there, got the connection"));
  CHECK(Clock::now() - start < 1s);
  CHECK_THROWS_AS(store->set("k", "v"), CommError);
}

TEST_CASE("dist: a server that is stopped is an error when the time is over") {
  ServerProcess server;
  const auto store = tcp_store({.port = server.port(), .timeout = 200ms});
  server.stop();
  const auto start = Clock::now();
  CHECK_THROWS_WITH(store->set("k", "v"), Contains("must answer within 2200 ms, got nothing"));
  CHECK_THROWS_WITH(tcp_store({.port = server.port(), .timeout = 200ms}),
                    Contains("peer must prove that it belongs to the run, got nothing in time"));
  CHECK(Clock::now() - start < 10s);
  server.go_on();
  // The late answer to what was given up is nobody's.
  CHECK(store->get("k", 20s) == "v");
}

TEST_CASE("dist: a request that finds no room in time is in nobody's way") {
  ServerProcess server;
  const auto store = tcp_store({.port = server.port()});
  // More than what the system keeps on the way.
  const std::string value(StoreTable::kMaxValue, 'x');
  server.stop();
  auto sending = std::async(std::launch::async, [&] { store->set("large", value); });
  std::this_thread::sleep_for(300ms);
  const auto start = Clock::now();
  CHECK_THROWS_WITH(
      store->find("k", 100ms),
      Contains("must take a request of ") && Contains(" bytes within 100 ms, got no room for it"));
  CHECK(Clock::now() - start < 5s);
  server.go_on();
  sending.get();
  CHECK(store->get("large", 20s) == value);

  server.stop();
  CHECK_THROWS_WITH(store->set("half", value, 200ms), Contains("within 200 ms, got no room"));
  server.go_on();
  store->set("k", "v");
  CHECK(store->get("k", 20s) == "v");
  // It was begun, so it was ended.
  CHECK(store->get("half", 20s) == value);
}

TEST_CASE("dist: two runs on one machine do not meet") {
  const auto a = tcp_store({.is_server = true, .run_id = "a", .secret = "s"});
  const auto b = tcp_store({.is_server = true, .run_id = "b", .secret = "s"});
  a->set("k", "of a");
  b->set("k", "of b");
  CHECK(a->get("k") == "of a");
  CHECK_THROWS_WITH(tcp_store({.port = a->server_port(), .run_id = "b", .secret = "s"}),
                    Contains("run id must be the same on both sides, got another run's"));
}

TEST_CASE("dist: a thousand connections leave nothing behind") {
  const auto store = tcp_store({.is_server = true});
  const int before = test::open_descriptors();
  for (int i = 0; i < 1000; ++i) {
    if (i % 2 == 0)
      test::stranger(store->server_port());
    else
      tcp_store({.port = store->server_port()})->add("n", 1);
  }
  CHECK(store->get("n") == "500");
  CHECK(becomes(
      [&] { return store->server()->connections() == 1 && test::open_descriptors() == before; }));
}

TEST_CASE("dist: a server short of descriptors and of room goes on") {
  rlimit usual{};
  getrlimit(RLIMIT_NOFILE, &usual);
  rlimit few = usual;
  few.rlim_cur = 64;
  const auto store = tcp_store({.is_server = true});
  const int before = test::open_descriptors();
  setrlimit(RLIMIT_NOFILE, &few);
  std::vector<Socket> crowd;
  std::string full;
  while (full.empty()) {
    try {
      crowd.push_back(test::stranger(store->server_port()));
    } catch (const CommError& error) {
      full = error.what();
    }
  }
  store->set("k", "v");
  const std::string here = store->get("k");
  crowd.clear();
  becomes([&] { return test::open_descriptors() <= before; });
  const std::string later = tcp_store({.port = store->server_port()})->get("k");
  setrlimit(RLIMIT_NOFILE, &usual);
  CHECK_THAT(full, Contains("a socket must be available, got: Too many open files"));
  CHECK((here == "v" && later == "v"));

  const TcpStoreServer small({.max_connections = 1});
  const auto first = tcp_store(client_of(small, 0, 0));
  first->set("k", "v");
  const auto second = tcp_store(client_of(small, 0, 0, 2s));
  CHECK_THROWS_AS(second->get("k"), CommError);
  CHECK_THAT(small.refusals().at(0), Contains("connections must be at most 1, got more"));
  CHECK(first->get("k") == "v");
}

TEST_CASE("dist: bytes that come one at a time, and signals all the while") {
  const TcpStoreServer server({});
  const test::Proxy proxy(server.port(), 1);
  const test::SignalStorm storm;
  const auto slow = tcp_store({.port = proxy.port()});
  const auto quick = tcp_store({.port = server.port()});
  const std::string value(3000, 'x');
  slow->set("k", value);
  CHECK(quick->get("k") == value);
  std::thread setter([&] {
    std::this_thread::sleep_for(50ms);
    quick->set("later", value);
  });
  CHECK(slow->get("later", 60s) == value);
  setter.join();
  for (int i = 0; i < 200; ++i) quick->add("n", 1);
  CHECK(slow->get("n") == "200");
  CHECK_THROWS_AS(slow->get("never", 50ms), CommError);
}
