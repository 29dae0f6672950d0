// Sockets: addresses, deadlines, and transfers that come apart.
#include "cairn/dist/socket.h"

#include <sys/socket.h>

#include <thread>

#include "tests/catch.h"
#include "tests/dist/net_support.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using namespace std::chrono_literals;

namespace {

struct Connected {
  Socket a, b;
};

Connected connected(const std::string& address) {
  const Socket listener = listen_on({address, 0});
  Connected out;
  out.a = connect_once(listener.local(), Deadline(10s));
  REQUIRE(listener.wait_readable(Deadline(10s)) == Transfer::done);
  out.b = accept_from(listener);
  return out;
}

bool has_v6() {
  try {
    listen_on({"::1", 0});
    return true;
  } catch (const CommError&) {
    return false;
  }
}

}  // namespace

TEST_CASE("dist: sockets know their ends, in both families") {
  std::vector<std::string> families{"127.0.0.1"};
  if (has_v6()) families.push_back("::1");
  for (const std::string& address : families) {
    Connected pair = connected(address);
    CHECK(pair.a.local() == pair.b.peer());
    CHECK(pair.b.local().address == address);
    CHECK(pair.a.send_all(std::as_bytes(std::span("hello")), Deadline(5s)) == Transfer::done);
    char got[6];
    CHECK(pair.b.recv_all(std::as_writable_bytes(std::span(got)), Deadline(5s)) == Transfer::done);
    CHECK(std::string(got) == "hello");
  }
  CHECK(cat(Endpoint{"::1", 5}) == "[::1]:5");
  CHECK(cat(Endpoint{"10.0.0.1", 5}) == "10.0.0.1:5");
}

TEST_CASE("dist: every wait of a socket ends at its deadline") {
  Connected pair = connected("127.0.0.1");
  std::vector<std::byte> bytes(64 << 20);
  CHECK(pair.a.recv_all(std::span(bytes).first(1), Deadline(30ms)) == Transfer::timed_out);
  // Nobody reads, so that the buffers fill up.
  CHECK(pair.a.send_all(bytes, Deadline(30ms)) == Transfer::timed_out);
  pair.b.close();
  CHECK(pair.a.recv_all(std::span(bytes).first(1), Deadline(5s)) == Transfer::closed);
  CHECK(pair.a.send_all(bytes, Deadline(5s)) == Transfer::closed);
  CHECK(Deadline(0ms).remaining() == 0ms);
}

TEST_CASE("dist: transfers survive tiny buffers and a storm of signals") {
  Connected pair = connected("127.0.0.1");
  const int tiny = 1;
  setsockopt(pair.a.fd(), SOL_SOCKET, SO_SNDBUF, &tiny, sizeof tiny);
  std::vector<std::byte> sent(2 << 20), got(sent.size());
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i * 7 >> 2);
  const test::SignalStorm storm;
  Transfer sending = Transfer::again;
  std::thread sender([&] { sending = pair.a.send_all(sent, Deadline(60s)); });
  CHECK(pair.b.recv_all(got, Deadline(60s)) == Transfer::done);
  sender.join();
  CHECK(sending == Transfer::done);
  CHECK((got == sent));
  // A wait is neither cut short nor prolonged by them.
  const auto start = Deadline::Clock::now();
  std::byte one[1];
  CHECK(pair.b.recv_all(one, Deadline(100ms)) == Transfer::timed_out);
  CHECK(Deadline::Clock::now() - start >= 100ms);
  CHECK(test::SignalStorm::count() > 10);
}

TEST_CASE("dist: shutting a connection down wakes the thread that waits for it") {
  Connected pair = connected("127.0.0.1");
  Transfer ended = Transfer::again;
  std::thread waiter([&] {
    std::byte one[1];
    ended = pair.a.recv_all(one, Deadline(30s));
  });
  std::this_thread::sleep_for(20ms);
  const auto start = Deadline::Clock::now();
  pair.a.shut_down();
  waiter.join();
  CHECK(ended == Transfer::closed);
  CHECK(Deadline::Clock::now() - start < 10s);
}

TEST_CASE("dist: addresses, names and interfaces are resolved") {
  CHECK(resolve("127.0.0.1", 80, Deadline(5s)) == std::vector<Endpoint>{{"127.0.0.1", 80}});
  CHECK(resolve("::1", 80, Deadline(5s)) == std::vector<Endpoint>{{"::1", 80}});
  CHECK(is_loopback(resolve("localhost", 80, Deadline(10s)).front().address));
  const auto all = interfaces();
  REQUIRE_FALSE(all.empty());
  CHECK(resolve(all.front().name, 1, Deadline(5s)).front().address == all.front().address);
  CHECK(is_loopback("127.1.2.3"));
  CHECK(is_loopback("::ffff:127.0.0.1"));
  CHECK_FALSE(is_loopback("128.0.0.1"));
  CHECK_FALSE(is_loopback("localhost"));
  CHECK(is_wildcard("0.0.0.0"));
  CHECK(is_wildcard("::"));
  CHECK_FALSE(is_wildcard("::1"));
}

TEST_CASE("dist: hosts and ports that are not there are one sentence") {
  CHECK_THROWS_WITH(resolve("no-such-host.invalid", 80, Deadline(2s)),
                    Contains("resolve: host 'no-such-host.invalid' must have an address, got: ") &&
                        Contains("This machine has "));
  CHECK_THROWS_WITH(resolve("", 80, Deadline(2s)), Contains("must be a name or an address"));
  CHECK_THROWS_WITH(resolve("localhost", 65536, Deadline(2s)),
                    "resolve: port must be 0 to 65535, got 65536");
  Socket taken = listen_on({"127.0.0.1", 0});
  const int port = taken.local().port;
  CHECK_THROWS_WITH(listen_on({"127.0.0.1", port}),
                    Contains(cat("listen: port ", port, " of 127.0.0.1 must be free, got one")));
  CHECK_THROWS_WITH(listen_on({"192.0.2.1", 0}), Contains("must be an address of this machine"));
  taken.close();
  CHECK_THROWS_WITH(connect_to("127.0.0.1", port, 100ms),
                    Contains(cat("connect: 127.0.0.1 port ", port,
                                 " must answer within 100 ms, got: Connection refused")));
  CHECK_THROWS_WITH(connect_once({"127.0.0.1", port}, Deadline(5s)), Contains("refused"));
}

TEST_CASE("dist: a connection waits for a listener that comes later") {
  Socket first = listen_on({"127.0.0.1", 0});
  const int port = first.local().port;
  first.close();
  std::thread later([&] {
    std::this_thread::sleep_for(100ms);
    first = listen_on({"127.0.0.1", port});
    first.wait_readable(Deadline(20s));
  });
  CHECK(connect_to("127.0.0.1", port, 20s));
  later.join();
}
