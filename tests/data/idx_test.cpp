// IDX files: what is read, and the text for each way in which a file can be wrong.
#include "cairn/data/idx.h"

#include <sys/stat.h>

#include "tests/catch.h"
#include "tests/data/support.h"

using namespace cairn;
using namespace cairn::test;

namespace {

// The error for a file of these bytes, with its name as F.
std::string idx_error(const Bytes& bytes, data::IdxOptions options = {}) {
  const TempFolder folder;
  options.name = std::string(1, 'F');  // not = "F": GCC 12 warns of it wrongly
  const std::string path = write_file(folder.file("f"), bytes);
  return error_of([&] { data::read_idx(path, options); });
}

Bytes shortened(Bytes bytes, size_t by) {
  bytes.resize(bytes.size() - by);
  return bytes;
}

Bytes changed(Bytes bytes, size_t at, uint8_t value) {
  bytes[at] = value;
  return bytes;
}

Bytes joined(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

TEST_CASE("data: idx reads plain and gzip files alike") {
  const TempFolder folder;
  const Bytes bytes = idx_bytes({5, 3, 4});
  const auto plain = data::read_idx_file(write_file(folder.file("a b"), bytes), {.rank = 3});
  const auto packed = data::read_idx_file(write_file(folder.file("c"), gzip(bytes)));
  CHECK(plain.data.shape() == Shape{5, 3, 4});
  CHECK(plain.data.dtype() == DType::u8);
  for (int i = 0; i < 60; ++i) CHECK(plain.data.data<uint8_t>()[i] == i);
  CHECK(same_bits(plain.data, packed.data));
  CHECK(plain.crc32 == crc_of(bytes));
  CHECK(packed.crc32 == crc_of(bytes));
}

TEST_CASE("data: idx reads files larger than its buffer, several gzip streams, and empty ones") {
  const TempFolder folder;
  const Bytes bytes = idx_bytes({300, 28, 28});
  const Tensor plain = data::read_idx(write_file(folder.file("a"), bytes));
  CHECK(plain.numel() == 235200);
  CHECK(plain.data<uint8_t>()[235199] == 235199 % 251);
  const Bytes head(bytes.begin(), bytes.begin() + 100000);
  const Bytes tail(bytes.begin() + 100000, bytes.end());
  const std::string two = write_file(folder.file("b"), joined(gzip(head), gzip(tail)));
  CHECK(same_bits(data::read_idx(two), plain));
  CHECK(data::read_idx(write_file(folder.file("c"), idx_bytes({0, 28, 28}))).shape() ==
        Shape{0, 28, 28});
}

TEST_CASE("data: idx errors name file, what was wanted and what came") {
  const Bytes good = idx_bytes({2, 3, 4});
  CHECK(idx_error({}) == "read_idx: header of 'F' must have at least 4 bytes, got 0");
  CHECK(idx_error({0, 0, 8}) == "read_idx: header of 'F' must have at least 4 bytes, got 3");
  CHECK(idx_error({0x89, 'P', 'N', 'G'}) ==
        "read_idx: first two bytes of 'F' must be 0 0, got 137 80");
  CHECK(idx_error(changed(good, 2, 13)) == "read_idx: type byte of 'F' must be 8 (u8), got 13");
  CHECK(idx_error(good, {.rank = 1}) == "read_idx: number of dimensions of 'F' must be 1, got 3");
  CHECK(idx_error({0, 0, 8, 0}) == "read_idx: number of dimensions of 'F' must be 1 to 8, got 0");
  CHECK(idx_error({0, 0, 8, 9}) == "read_idx: number of dimensions of 'F' must be 1 to 8, got 9");
  CHECK(idx_error(Bytes(good.begin(), good.begin() + 14)) ==
        "read_idx: header of 'F' must have 16 bytes, got 14");
  CHECK(idx_error(shortened(good, 1)) ==
        "read_idx: content of 'F' must be 24 bytes for dimensions [2, 3, 4], got 23");
  CHECK(idx_error(changed(good, 7, 200)) ==
        "read_idx: content of 'F' must be 2400 bytes for dimensions [200, 3, 4], got 24");
  CHECK(idx_error(joined(good, {7})) ==
        "read_idx: 'F' must end after 24 bytes of content for dimensions [2, 3, 4], got more");
  CHECK(idx_error(good, {.max_bytes = 23}) ==
        "read_idx: content of 'F' must be at most 23 bytes, got dimensions [2, 3, 4]");
}

TEST_CASE("data: idx refuses dimensions whose product overflows before taking memory") {
  Bytes huge{0, 0, 8, 4};
  for (int i = 0; i < 16; ++i) huge.push_back(0xff);
  CHECK(idx_error(huge) ==
        "read_idx: content of 'F' must be at most 1073741824 bytes, got dimensions [4294967295, "
        "4294967295, 4294967295, 4294967295]");
  CHECK(idx_error(gzip(huge)) == idx_error(huge));
}

TEST_CASE("data: idx errors of gzip files") {
  const Bytes plain = idx_bytes({2, 3, 4});
  const Bytes good = gzip(plain);
  const size_t n = good.size();
  CHECK(idx_error(shortened(good, 1)) ==
        "read_idx: 'F' must be a complete gzip file, got its end after 40 decompressed bytes");
  CHECK(idx_error(Bytes(good.begin(), good.begin() + 12))
            .find("read_idx: 'F' must be a complete gzip file, got its end after") == 0);
  CHECK(idx_error(changed(good, n - 8, static_cast<uint8_t>(good[n - 8] ^ 1))) ==
        "read_idx: 'F' must be valid gzip, got 'incorrect data check'");
  CHECK(idx_error(changed(good, n - 4, 41)) ==
        "read_idx: 'F' must be valid gzip, got 'incorrect length check'");
  CHECK(idx_error(changed(good, 10, 7)) ==
        "read_idx: 'F' must be valid gzip, got 'invalid block type'");
  CHECK(idx_error(changed(good, 2, 7)) ==
        "read_idx: 'F' must be valid gzip, got 'unknown compression method'");
  CHECK(idx_error(joined(good, {0, 0})) ==
        "read_idx: 'F' must end with its gzip stream, got bytes behind it");
  CHECK(idx_error(gzip(joined(plain, {1}))) ==
        "read_idx: 'F' must end after 24 bytes of content for dimensions [2, 3, 4], got more");
}

TEST_CASE("data: idx reads no more of a zip bomb than its header names") {
  Bytes bomb = idx_bytes({2, 3, 4});
  bomb.resize(size_t{64} << 20);  // 64 MiB that pack to 64 KiB
  const Bytes packed = gzip(bomb);
  REQUIRE(packed.size() < (size_t{1} << 17));
  CHECK(idx_error(packed) ==
        "read_idx: 'F' must end after 24 bytes of content for dimensions [2, 3, 4], got more");
  CHECK(idx_error(gzip(changed(idx_bytes({2, 3, 4}), 4, 0x7f)), {.max_bytes = 1000}) ==
        "read_idx: content of 'F' must be at most 1000 bytes, got dimensions [2130706434, 3, 4]");
}

TEST_CASE("data: idx refuses what is no readable file") {
  const TempFolder folder;
  const std::string missing = folder.file("missing");
  CHECK(error_of([&] { data::read_idx(missing); }) ==
        "read_idx: '" + missing + "' must be readable, got 'No such file or directory'");
  CHECK(error_of([&] { data::read_idx(folder.path()); }) ==
        "read_idx: '" + folder.path() + "' must be a regular file, got a folder");
  const std::string pipe = folder.file("pipe");
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(error_of([&] { data::read_idx(pipe); }) ==
        "read_idx: '" + pipe + "' must be a regular file, got something else");
}

TEST_CASE("data: idx survives every single changed byte and every cut") {
  // Either an error or a tensor: never a crash, a hang, or memory for what the header lies about.
  const Bytes good = idx_bytes({3, 2, 2});
  int errors = 0;
  for (const Bytes& bytes : {good, gzip(good)}) {
    const bool packed = bytes.size() != good.size();
    for (size_t at = 0; at < bytes.size(); ++at) {
      for (const uint8_t flip : {0x01, 0x80, 0xff}) {
        const auto value = static_cast<uint8_t>(bytes[at] ^ flip);
        errors += idx_error(changed(bytes, at, value), {.max_bytes = 1 << 20}) != "no error";
      }
      CHECK(idx_error(Bytes(bytes.begin(), bytes.begin() + static_cast<long>(at))) != "no error");
    }
    // In a plain file only the 12 bytes of content may change unnoticed.
    if (!packed) CHECK(errors == 3 * 16);
  }
  CHECK(errors > 3 * 16 + 3 * 8);  // at least CRC and length of the gzip trailer are noticed
}
