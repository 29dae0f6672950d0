// Frames between two ends of a connection: whole and in order, or an error; never other bytes.
#include "cairn/dist/link.h"

#include <sys/socket.h>

#include <random>

#include "tests/catch.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;

namespace {

constexpr uint64_t kCall = 7;

struct Ends {
  Ends() {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    link = Socket(ends[0]);
    other = Socket(ends[1]);
  }
  Socket link, other;
};

Piece piece_of(std::string& bytes) {
  return {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()};
}

std::vector<std::string> payloads(std::mt19937& random) {
  std::vector<std::string> out;
  for (const size_t size : {0, 1, 48, 1000, 20000}) {
    std::string& bytes = out.emplace_back(size, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
  }
  return out;
}

// What a link says for these payloads, one string a frame.
std::vector<std::string> frames_of(std::vector<std::string> sent) {
  Ends ends;
  Link link(std::move(ends.link));
  std::vector<std::string> frames;
  for (std::string& payload : sent) {
    const Piece piece = piece_of(payload);
    link.begin_send(kCall, std::span(&piece, 1));
    REQUIRE(link.push() == Progress::done);
    std::string& frame = frames.emplace_back(1 << 16, '\0');
    size_t moved = 0;
    REQUIRE(ends.other.recv_some(std::as_writable_bytes(std::span(frame)), moved) ==
            Transfer::done);
    frame.resize(moved);
  }
  return frames;
}

std::string joined(const std::vector<std::string>& frames) {
  std::string out;
  for (const std::string& frame : frames) out += frame;
  return out;
}

struct Heard {
  size_t right = 0;  // frames that came as they were sent
  bool wrong = false;
  Progress end = Progress::done;
  std::string damage;
};

// What a link takes of these bytes, which come in pieces and then end.
Heard hear(const std::string& bytes, const std::vector<std::string>& sent, size_t piece) {
  Ends ends;
  Link link(std::move(ends.link));
  Heard heard;
  size_t at = 0;
  for (const std::string& wanted : sent) {
    std::string got(wanted.size(), '\0');
    const Piece to = piece_of(got);
    link.begin_recv(kCall, std::span(&to, 1));
    while ((heard.end = link.pull()) == Progress::again) {
      size_t moved = 0;
      const std::string_view next = std::string_view(bytes).substr(at, piece);
      if (next.empty())
        ends.other.close();
      else
        ends.other.send_some(std::as_bytes(std::span(next)), moved);
      at += moved;
    }
    if (heard.end != Progress::done) break;
    heard.wrong = heard.wrong || got != wanted;
    ++heard.right;
  }
  heard.damage = link.damage();
  return heard;
}

// Something else than these frames.
std::string change(std::vector<std::string> frames, std::mt19937& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const size_t one = below(frames.size()), two = below(frames.size());
  std::string all = joined(frames);
  const size_t at = below(all.size());
  switch (random() % 6) {
    case 0:
      all[at] = static_cast<char>(all[at] ^ (1 << below(8)));
      return all;
    case 1:
      return all.substr(0, at);
    case 2:
      return all.erase(at, 1 + below(60));
    case 3:
      return all.insert(at, std::string(1 + below(60), static_cast<char>(random())));
    case 4:
      frames.insert(frames.begin() + static_cast<std::ptrdiff_t>(one), frames[two]);
      return joined(frames);
    default:
      std::swap(frames[one], frames[two]);
      return joined(frames);
  }
}

}  // namespace

TEST_CASE("dist: frames come whole, however few bytes come at a time") {
  std::mt19937 random(1);
  const auto sent = payloads(random);
  const std::string bytes = joined(frames_of(sent));
  for (const size_t piece : {1, 7, 47, 49, 4096, 100000}) {
    const Heard heard = hear(bytes, sent, piece);
    CHECK(heard.end == Progress::done);
    CHECK((heard.right == sent.size() && !heard.wrong));
  }
}

TEST_CASE("dist: a frame that is cut off is the connection's end, wherever the cut is") {
  std::mt19937 random(2);
  const auto sent = payloads(random);
  const auto frames = frames_of(sent);
  const std::string bytes = joined(frames);
  for (size_t end = 0; end < bytes.size(); end += end < 1300 ? 1 : 997) {
    size_t whole = 0;
    for (size_t at = 0; whole < frames.size() && (at += frames[whole].size()) <= end;) ++whole;
    const Heard heard = hear(bytes.substr(0, end), sent, 1 << 16);
    CHECK(heard.end == Progress::closed);
    CHECK((heard.right == whole && !heard.wrong));
  }
}

TEST_CASE("dist: what is wrong with a frame is said") {
  std::mt19937 random(3);
  const auto sent = payloads(random);
  const auto frames = frames_of(sent);
  const auto damage = [&](std::vector<std::string> changed) {
    const Heard heard = hear(joined(changed), sent, 1 << 16);
    CHECK(heard.end == Progress::damaged);
    CHECK_FALSE(heard.wrong);
    return heard.damage;
  };
  auto changed = frames;
  changed[1][9] ^= 1;
  CHECK(damage(changed) == "frame 1 must begin with an unchanged header, got other bytes");
  changed = frames;
  changed[3][500] ^= 1;
  CHECK(damage(changed) == "frame 3 must arrive unchanged, got other bytes");
  CHECK(damage({frames[0], frames[0], frames[1]}) == "frame 1 must be the next one, got frame 0");
  CHECK(damage({frames[0], frames[2], frames[1]}) == "frame 1 must be the next one, got frame 2");
  CHECK(damage(frames_of({"", "xx"})) == "frame 1 must hold 1 bytes, got 2");
}

TEST_CASE("dist: frames changed in any way are never taken for others") {
  std::mt19937 random(4);
  int unchanged = 0;
  for (int round = 0; round < 3000; ++round) {
    const auto sent = payloads(random);
    const auto frames = frames_of(sent);
    const std::string bytes = change(frames, random);
    const Heard heard = hear(bytes, sent, random() % 2 == 0 ? 1 << 16 : 1 + random() % 3000);
    if (heard.wrong) FAIL("round " << round << ": other bytes were taken");
    // All frames may be right only where they stand at the beginning of what came.
    if (heard.right < sent.size()) continue;
    ++unchanged;
    if (!bytes.starts_with(joined(frames))) FAIL("round " << round << ": a change was not seen");
  }
  CHECK(unchanged < 1500);
}
