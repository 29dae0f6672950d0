// Who does not belong to a run: kept out, told little, and no trouble to those who do.
#include <algorithm>
#include <atomic>
#include <future>
#include <optional>
#include <random>
#include <thread>

#include "cairn/dist/auth.h"
#include "cairn/dist/doorkeeper.h"
#include "cairn/dist/store_wire.h"
#include "cairn/dist/tcp_store.h"
#include "tests/catch.h"
#include "tests/dist/net_support.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using namespace std::chrono_literals;
using test::hear_until_closed;
using test::say;
using test::stranger;

namespace {

constexpr size_t kNonce = 32;
const std::string magic("cairn\0\0\1", 8);
// What a server says before any proof.
constexpr size_t kChallenge = 8 + kNonce;

// Lets each end speak in turn until neither has anything to say.
void converse(Handshake& client, Handshake& server) {
  for (int i = 0; i < 4; ++i)
    for (auto [from, to] : {std::pair(&client, &server), std::pair(&server, &client)}) {
      const auto message = from->outgoing();
      if (message.empty() || to->expects() == 0) continue;
      to->received(message);
      from->sent();
    }
}

std::string random_bytes(size_t count) {
  std::mt19937 random(5);
  std::string out(count, 0);
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

bool any_contains(const std::vector<std::string>& texts, const std::string& part) {
  return std::any_of(texts.begin(), texts.end(),
                     [&](const std::string& text) { return text.find(part) != std::string::npos; });
}

}  // namespace

TEST_CASE("dist: both ends of a connection prove themselves and their claims") {
  const AuthOptions options{"secret", "run", "store"};
  Handshake client(Side::client, options, {1, 2, 3, 0xffffffff});
  Handshake server(Side::server, options, {9, 8, 7, 6});
  converse(client, server);
  CHECK((client.done() && server.done()));
  CHECK(server.peer() == Claim{1, 2, 3, 0xffffffff});
  CHECK(client.peer() == Claim{9, 8, 7, 6});
}

TEST_CASE("dist: both ends learn what differs") {
  const AuthOptions options{"secret", "run", "store"};
  const auto refusal = [&](const AuthOptions& other) {
    Handshake client(Side::client, other, {}), server(Side::server, options, {});
    converse(client, server);
    CHECK((client.refused() && server.refused()));
    CHECK_FALSE((client.done() || server.done()));
    CHECK(client.refusal() == server.refusal());
    return std::string(client.refusal());
  };
  CHECK(refusal({"other", "run", "store"}) == "secret must be the run's, got another");
  CHECK(refusal({"", "run", "store"}) == "secret must be the run's, got another");
  CHECK(refusal({"secret", "other", "store"}) ==
        "run id must be the same on both sides, got another run's");
  CHECK(refusal({"secret", "run", "ring"}) ==
        "purpose must be the same on both sides, got another");
  // Where one text ends and the next begins is part of the proof.
  CHECK(refusal({"secret", "runs", "tore"}) != "");
}

TEST_CASE("dist: a proof that is changed, repeated or thrown back does not pass") {
  const AuthOptions options{"secret", "run", "store"};
  std::vector<std::byte> hello, answer;
  {
    Handshake client(Side::client, options, {}), server(Side::server, options, {});
    hello.assign(client.outgoing().begin(), client.outgoing().end());
    client.sent();
    server.received(hello);
    client.received(server.outgoing());
    answer.assign(client.outgoing().begin(), client.outgoing().end());
  }
  // Replayed to a server, whose number is a new one.
  Handshake server(Side::server, options, {});
  server.received(hello);
  server.received(answer);
  CHECK(server.refused());
  // Every single byte matters.
  for (size_t i = 0; i < answer.size(); ++i) {
    Handshake client(Side::client, options, {}), other(Side::server, options, {});
    other.received(client.outgoing());
    client.sent();
    client.received(other.outgoing());
    std::vector<std::byte> changed(client.outgoing().begin(), client.outgoing().end());
    changed[i] ^= std::byte{1};
    other.sent();
    other.received(changed);
    CHECK(other.refused());
  }
  // An echo of the client's own words proves nothing to it.
  Handshake echoed(Side::client, options, {});
  const std::vector<std::byte> own(echoed.outgoing().begin(), echoed.outgoing().end());
  echoed.sent();
  echoed.received(own);
  const std::vector<std::byte> proofs(echoed.outgoing().begin(), echoed.outgoing().end());
  echoed.received(std::span(proofs).first(echoed.expects()));
  CHECK(echoed.refused());
}

TEST_CASE("dist: strangers are dropped and the run does not notice") {
  const auto store = tcp_store({.is_server = true, .secret = "s"});
  const auto other = tcp_store({.port = store->server_port(), .secret = "s"});
  const int port = store->server_port();
  Socket random = stranger(port), http = stranger(port), huge = stranger(port),
         silent = stranger(port), half = stranger(port), slow = stranger(port),
         flood = stranger(port);
  const auto start = Deadline::Clock::now();
  say(random, random_bytes(200));
  say(http, "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n");
  say(huge, std::string(64, '\xff'));
  say(half, magic + random_bytes(kNonce));
  say(slow, magic.substr(0, 3));
  say(flood, std::string(8 << 20, 'x'));

  // Meanwhile the run goes on.
  std::thread rank([&] {
    for (int i = 0; i < 200; ++i) other->add("n", 1);
    other->set("done", "1");
  });
  store->get("done", 20s);
  rank.join();
  CHECK(store->get("n") == "200");

  CHECK(hear_until_closed(random, 2s).empty());
  CHECK(hear_until_closed(http, 2s).empty());
  CHECK(hear_until_closed(huge, 2s).empty());
  CHECK(hear_until_closed(flood, 2s).empty());
  const std::string challenge = hear_until_closed(half, 20s);
  CHECK(challenge.size() == kChallenge);
  CHECK(hear_until_closed(silent, 20s).empty());
  CHECK(hear_until_closed(slow, 20s).empty());
  CHECK(Deadline::Clock::now() - start >= Doorkeeper::kProofTime);

  const auto refusals = store->server()->refusals();
  CHECK(store->server()->refusal_count() == 7);
  // Once for each reason, however often.
  CHECK(refusals.size() == 2);
  CHECK(any_contains(refusals, "127.0.0.1 was refused 4 times: peer must speak this version"));
  CHECK(any_contains(refusals, "127.0.0.1 was refused 3 times: proof must come within 3 s"));
  CHECK(store->server()->connections() == 2);
}

TEST_CASE("dist: more strangers than are listened to at a time do not keep members out") {
  const auto store = tcp_store({.is_server = true, .secret = "s"});
  std::vector<Socket> crowd;
  for (size_t i = 0; i < 3 * Doorkeeper::kMaxUnproven; ++i)
    crowd.push_back(stranger(store->server_port()));
  const auto start = Deadline::Clock::now();
  const auto member = tcp_store({.port = store->server_port(), .secret = "s"});
  CHECK(Deadline::Clock::now() - start < Doorkeeper::kProofTime);
  member->set("k", "v");
  CHECK(any_contains(store->server()->refusals(), "while many others connect"));
}

TEST_CASE("dist: a wrong secret and another run's id are refused at both ends, and told once") {
  const auto store = tcp_store({.is_server = true, .run_id = "a", .secret = "s"});
  const int port = store->server_port();
  const auto start = Deadline::Clock::now();
  for (int i = 0; i < 3; ++i)
    CHECK_THROWS_WITH(tcp_store({.port = port, .run_id = "a", .secret = "t"}),
                      Contains("secret must be the run's, got another"));
  CHECK_THROWS_WITH(tcp_store({.port = port, .run_id = "b", .secret = "s"}),
                    Contains("run id must be the same on both sides, got another run's"));
  CHECK(Deadline::Clock::now() - start < 10s);
  const auto refusals = store->server()->refusals();
  CHECK(refusals.size() == 2);
  CHECK(any_contains(refusals, "refused 3 times: secret must be the run's"));
  CHECK(any_contains(refusals, "refused 1 time: run id must be the same"));
}

TEST_CASE("dist: what a member said opens nothing when it is said again") {
  const auto store = tcp_store({.is_server = true, .secret = "s"});
  const test::Proxy proxy(store->server_port(), 4096);
  tcp_store({.port = proxy.port(), .secret = "s"})->set("k", "of the member");
  const std::string said = proxy.said();
  REQUIRE(said.size() > kChallenge + Handshake::kLargest);
  Socket again = stranger(store->server_port());
  store->set("k", "later");
  say(again, said);
  hear_until_closed(again, 2s);
  CHECK(store->get("k") == "later");
  CHECK(any_contains(store->server()->refusals(), "refused 1 time: secret must be the run's"));
}

TEST_CASE("dist: a server that is something else is told from one that is not there") {
  Socket listener = listen_on({"127.0.0.1", 0});
  std::thread something([&] {
    listener.wait_readable(Deadline(20s));
    Socket socket = accept_from(listener);
    say(socket, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    socket.wait_readable(Deadline(20s));
  });
  CHECK_THROWS_WITH(tcp_store({.port = listener.local().port}),
                    Contains("peer must speak this version of Cairn's protocol"));
  something.join();
}

TEST_CASE("dist: a member that sends what is no request is dropped") {
  const TcpStoreServer server({.secret = "s"});
  const auto member = [&] {
    Socket socket = stranger(server.port());
    authenticate(socket, Side::client, {"s", "", "store"}, {}, Deadline(20s), "test");
    return socket;
  };
  Socket huge = member(), unknown = member(), cut = member(), gone = member();
  say(huge, wire::head_of({0xffffffff, 0, 1}));
  say(unknown, wire::head_of({0, 0, 77}));
  say(cut, wire::head_of({4, 0, 1}) + std::string("\xff\xff\xff\x7f", 4));
  say(gone, wire::head_of({1000, 0, 1}) + "half");
  gone.close();
  CHECK(hear_until_closed(huge, 5s).empty());
  CHECK(hear_until_closed(unknown, 5s).empty());
  CHECK(hear_until_closed(cut, 5s).empty());
  CHECK(any_contains(server.refusals(), "request must have at most 33558528 bytes"));
  CHECK(any_contains(server.refusals(), "operation must be a known one, got number 77"));
  CHECK(any_contains(server.refusals(), "frame must hold 2147483647 bytes more, got 0"));
  const auto store = tcp_store({.port = server.port(), .secret = "s"});
  CHECK(store->num_keys() == 0);
}

TEST_CASE("dist: a member that takes no replies holds up nobody, in bounded memory") {
  const TcpStoreServer server({});
  const auto store = tcp_store({.port = server.port()});
  store->set("large", std::string(1 << 20, 'x'));
  Socket deaf = stranger(server.port());
  authenticate(deaf, Side::client, {"", "", "store"}, {}, Deadline(20s), "test");
  // Asks for 4 GiB and reads none of it.
  std::string body;
  wire::put_text(body, "large");
  const std::string ask = wire::head_of({static_cast<uint32_t>(body.size()), 1, 3}) + body;
  for (int i = 0; i < 4096; ++i) say(deaf, ask);
  for (int i = 0; i < 100; ++i) store->add("n", 1);
  CHECK(store->get("n") == "100");
  // And gets every reply once it listens.
  std::vector<std::byte> reply(StoreFrame::kHead + (1 << 20));
  int replies = 0;
  for (; replies < 50; ++replies)
    if (deaf.recv_all(reply, Deadline(20s)) != Transfer::done) break;
  CHECK(replies == 50);
}

TEST_CASE("dist: a doorkeeper lets members in one by one") {
  Doorkeeper door(listen_on({"127.0.0.1", 0}), {"s", "run", "mesh"}, {42});
  const int port = door.endpoint().port;
  CHECK_FALSE(door.admit(Deadline(30ms)));
  std::vector<std::thread> peers;
  std::atomic<int> proven = 0;
  Socket silent = stranger(port);
  for (uint32_t rank = 0; rank < 3; ++rank)
    peers.emplace_back([&, rank] {
      Socket socket = stranger(port);
      const Claim claim = authenticate(socket, Side::client, {"s", "run", "mesh"}, {rank, 3},
                                       Deadline(20s), "test");
      proven += claim[0] == 42 ? 1 : 0;
    });
  uint32_t seen = 0;
  for (int i = 0; i < 3; ++i) {
    const auto guest = door.admit(Deadline(20s));
    REQUIRE(guest);
    CHECK(guest->claim[1] == 3);
    seen |= 1u << guest->claim[0];
  }
  for (std::thread& peer : peers) peer.join();
  CHECK(seen == 7);
  CHECK(proven == 3);
}

TEST_CASE("dist: a doorkeeper lets a member in by the last descriptor") {
  Doorkeeper door(listen_on({"127.0.0.1", 0}), {"s", "run", "mesh"}, {42});
  Socket socket = stranger(door.endpoint().port);
  std::optional<Doorkeeper::Guest> guest;
  const auto peer = std::async(std::launch::async, [&] {
    return authenticate(socket, Side::client, {"s", "run", "mesh"}, {7}, Deadline(20s), "test")[0];
  });
  {
    const test::DescriptorLimit limit(1);
    guest = door.admit(Deadline(20s));
  }
  REQUIRE(guest);
  CHECK(guest->claim[0] == 7);
  CHECK(!door.starved());
}
