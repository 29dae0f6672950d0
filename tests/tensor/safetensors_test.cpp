// safetensors: the bytes written, the round trip, and a malformed file for every rule.
#include "cairn/tensor/safetensors.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using test::error_text;
using test::read_bytes;
using test::TempFolder;

namespace {

std::string length_bytes(uint64_t n) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &n, 8);
  return out;
}

// A file with this header and this many data bytes.
std::string file_bytes(const std::string& header, size_t data) {
  return length_bytes(header.size()) + header + std::string(data, '\1');
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

bool same(const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype() || !(a.shape() == b.shape())) return false;
  const Tensor x = raw::contiguous(a);
  const Tensor y = raw::contiguous(b);
  return x.nbytes() == 0 ||
         std::memcmp(x.raw_data(), y.raw_data(), static_cast<size_t>(x.nbytes())) == 0;
}

std::map<std::string, Tensor> every_kind() {
  std::map<std::string, Tensor> set;
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    set.emplace(cat("vector.", dtype), raw::to(arange(0, 6), dtype));
    set.emplace(cat("scalar.", dtype), scalar_tensor(1, {.dtype = dtype}));
    set.emplace(cat("empty.", dtype), zeros({3, 0, 2}, {.dtype = dtype}));
  }
  const Tensor base = raw::to(arange(0, 2 * 3 * 4 * 5), DType::f32);
  const Tensor cube = raw::view(base, {2, 3, 4, 5});
  set.emplace("permuted", raw::permute(cube, {3, 1, 0, 2}));
  set.emplace("channels_last", raw::channels_last(cube));
  set.emplace("sliced", raw::slice(cube, 3, 1, 5, 2));
  set.emplace("expanded", raw::expand(raw::view(raw::slice(base, 0, 0, 3), {3, 1}), {3, 4}));
  return set;
}

struct Malformed {
  std::string bytes;
  std::string text;  // after "load_safetensors: 'FILE' breaks rule "
};

std::vector<Malformed> malformed_files() {
  const std::string f32 = entry("a", "F32", "[2]", "[0,8]");
  const auto one = [](const std::string& header, size_t data, const std::string& text) {
    return Malformed{file_bytes(header, data), text};
  };
  std::string bad_utf8 = "{" + f32 + "}";
  bad_utf8[2] = '\xff';
  return {
      {"1234567", "R1: file must have at least 8 bytes, got 7"},
      {length_bytes(100'000'001) + "{}",
       "R1: header must have at most 100000000 bytes, got "
       "100000001"},
      {length_bytes(~uint64_t{0}) + "{}",
       "R1: header must have at most 100000000 bytes, got "
       "18446744073709551615"},
      {length_bytes(3) + "{}", "R1: header of 3 bytes must lie inside the file of 10 bytes"},
      one(bad_utf8, 8, "R2: header must be valid JSON, got an error at byte 3"),
      one("{\"a\":", 0, "R2: header must be valid JSON, got an error at byte 6"),
      one("{} x", 0, "R2: header must be valid JSON, got an error at byte 4"),
      one("[]", 0, "R2: header must be a JSON object that starts with '{' and has no zero bytes"),
      one("", 0, "R2: header must be a JSON object that starts with '{' and has no zero bytes"),
      one(" {}", 0, "R2: header must be a JSON object that starts with '{' and has no zero bytes"),
      one("\xef\xbb\xbf{}", 0,
          "R2: header must be a JSON object that starts with '{' and has no zero bytes"),
      one(std::string("{}\0\0", 4), 0,
          "R2: header must be a JSON object that starts with '{' and has no zero bytes"),
      one("{\"__metadata__\":{\"k\":1}}", 0, "R3: __metadata__ entry 'k' must be text"),
      one("{\"__metadata__\":{\"k\":{}}}", 0, "R3: __metadata__ entry 'k' must be text"),
      one("{\"__metadata__\":[]}", 0, "R3: __metadata__ must be an object of text"),
      one("{\"a\":3}", 0, "R4: tensor 'a' must be an object"),
      one("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8,
          "R4: tensor 'a' must have dtype, shape and data_offsets once each, got no data_offsets"),
      one("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 8,
          "R4: tensor 'a' must have dtype, shape and data_offsets once each, got again 'dtype'"),
      one("{\"a\":{\"dtype\":\"F32\",\"strides\":[1]}}", 8,
          "R4: tensor 'a' must have dtype, shape and data_offsets once each, got also 'strides'"),
      one("{" + entry("a", "F33", "[2]", "[0,8]") + "}", 8,
          "R4: tensor 'a' must have dtype F64, F32, BF16, F16, I64, I32, U8 or BOOL, got the "
          "unknown F33"),
      one("{" + entry("a", "I16", "[4]", "[0,8]") + "}", 8,
          "R4: tensor 'a' must have dtype F64, F32, BF16, F16, I64, I32, U8 or BOOL, got the "
          "unsupported I16"),
      one("{" + entry("a", "F32", "[-2]", "[0,8]") + "}", 8,
          "R4: tensor 'a' must have a shape of non-negative integers"),
      one("{" + entry("a", "F32", "[2.0]", "[0,8]") + "}", 8,
          "R4: tensor 'a' must have a shape of non-negative integers"),
      one("{" + entry("a", "F32", "[[2]]", "[0,8]") + "}", 8,
          "R4: tensor 'a' must have a shape of non-negative integers"),
      one("{" + entry("a", "F32", "2", "[0,8]") + "}", 8,
          "R4: tensor 'a' must have a fitting value for 'shape'"),
      one("{" + entry("a", "F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]") + "}", 8,
          "R4: tensor 'a' must have at most 8 dimensions"),
      one("{" + entry("a", "F32", "[2]", "[0]") + "}", 8,
          "R4: tensor 'a' must have two non-negative integers as data_offsets"),
      one("{" + entry("a", "F32", "[2]", "[0,8,8]") + "}", 8,
          "R4: tensor 'a' must have two non-negative integers as data_offsets"),
      one("{" + entry("a", "F32", "[2]", "[0,-8]") + "}", 8,
          "R4: tensor 'a' must have two non-negative integers as data_offsets"),
      one("{" + entry("a", "F32", "[2]", "[4,12]") + "}", 12,
          "R5: tensor 'a' must start at byte 0 and end by byte 12, got data_offsets [4, 12]"),
      one("{" + f32 + "," + entry("b", "F32", "[2]", "[4,12]") + "}", 12,
          "R5: tensor 'b' must start at byte 8 and end by byte 12, got data_offsets [4, 12]"),
      one("{" + f32 + "," + entry("b", "F32", "[1]", "[12,16]") + "}", 16,
          "R5: tensor 'b' must start at byte 8 and end by byte 16, got data_offsets [12, 16]"),
      one("{" + entry("a", "F32", "[0]", "[8,0]") + "}", 8,
          "R5: tensor 'a' must start at byte 0 and end by byte 8, got data_offsets [8, 0]"),
      one("{" + f32 + "}", 7,
          "R5: tensor 'a' must start at byte 0 and end by byte 7, got data_offsets [0, 8]"),
      one("{" + f32 + "}", 9, "R5: tensors must end at the last of 9 data bytes, got 8"),
      one("{}", 1, "R5: tensors must end at the last of 1 data bytes, got 0"),
      one("{" + entry("a", "F32", "[3]", "[0,8]") + "}", 8,
          "R6: tensor 'a' of shape [3] and dtype f32 must take 12 bytes, got 8"),
      one("{" + entry("a", "F64", "[4611686018427387904,4]", "[0,8]") + "}", 8,
          "R6: tensor 'a' of shape [4611686018427387904, 4] and dtype f64 must take less than 2^64 "
          "bytes, got 8"),
      one("{" + entry("a", "F32", "[18446744073709551615]", "[0,8]") + "}", 8,
          "R6: tensor 'a' has a size of 18446744073709551615"),
      one("{" + entry("a", "F32", "[0,4611686018427387904,4]", "[0,0]") + "}", 0,
          "R6: tensor 'a' of shape [0, 4611686018427387904, 4] must have sizes whose product fits "
          "an int64"),
      one("{" + f32 + "," + entry("a", "F32", "[2]", "[8,16]") + "}", 16,
          "R7: name 'a' appears twice"),
      one("{" + f32 + "," + f32 + "}", 8, "R7: name 'a' appears twice"),
      one("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "R7: name '__metadata__' appears twice"),
      one("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", 0,
          "R7: __metadata__ name 'k' appears twice"),
      one("{" + entry(std::string(4097, 'n'), "F32", "[2]", "[0,8]") + "}", 8,
          "R8: names must have at most 4096 bytes, got 4097"),
      {file_bytes("{" + entry("a", "BOOL", "[2]", "[0,2]") + "}", 1) + "\2",
       "R9: tensor 'a' must have BOOL bytes of 0 or 1, got 2"},
      one("{" + entry("a", "F4", "[16]", "[0,8]") + "}", 8,
          "R11: tensor 'a' must have a dtype of whole bytes, got F4"),
  };
}

}  // namespace

TEST_CASE("tensor: safetensors gives back every dtype, shape and layout") {
  TempFolder folder;
  const auto set = every_kind();
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"näme", "\"quoted\"\n"}};
  save_safetensors(folder.path("a.safetensors"), set, metadata);
  CHECK(folder.files() == 1);

  std::map<std::string, std::string> read_metadata{{"old", "entry"}};
  const auto read = load_safetensors(folder.path("a.safetensors"), &read_metadata);
  CHECK(read_metadata == metadata);
  REQUIRE(read.size() == set.size());
  for (const auto& [name, tensor] : set) {
    INFO(name);
    REQUIRE(read.count(name) == 1);
    CHECK(read.at(name).is_contiguous());
    CHECK(same(read.at(name), tensor));
  }
}

TEST_CASE("tensor: safetensors writes the bytes of the reference implementation") {
  // Written by Python's safetensors 0.8.0: save_file({"b": ones(2) f32, "a": tensor(True),
  // "c": arange(2) i64, "d": zeros(1, 0) u8}, metadata {"format": "pt"}), torch 2.15.
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"c":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[16,24]},)"
      R"("d":{"dtype":"U8","shape":[1,0],"data_offsets":[24,24]},)"
      R"("a":{"dtype":"BOOL","shape":[],"data_offsets":[24,25]}})";
  std::string expected = header + std::string((8 - header.size() % 8) % 8, ' ');
  expected = length_bytes(expected.size()) + expected;
  expected += length_bytes(0) + length_bytes(1);
  expected += std::string("\0\0\x80\x3f\0\0\x80\x3f\1", 9);

  TempFolder folder;
  save_safetensors(folder.path("x"),
                   {{"b", ones({2})},
                    {"a", scalar_tensor(1, {.dtype = DType::boolean})},
                    {"c", arange(0, 2)},
                    {"d", zeros({1, 0}, {.dtype = DType::u8})}},
                   {{"format", "pt"}});
  CHECK(read_bytes(folder.path("x")) == expected);
}

TEST_CASE("tensor: safetensors reads the files Python wrote") {
  const auto read =
      load_safetensors(std::string(CAIRN_SOURCE_DIR) + "/tests/parity/optim.safetensors");
  REQUIRE(read.count("start.a") == 1);
  CHECK(read.at("start.a").shape() == Shape{3, 4});
  CHECK(read.at("start.a").dtype() == DType::f64);
}

TEST_CASE("tensor: safetensors names file and rule for every kind of malformed file") {
  TempFolder folder;
  for (const auto& [bytes, text] : malformed_files()) {
    const std::string path = folder.write("bad.safetensors", bytes);
    CHECK(error_text([&] { load_safetensors(path); }) ==
          "load_safetensors: '" + path + "' breaks rule " + text);
  }
}

TEST_CASE("tensor: safetensors accepts white space after the header and any order of names") {
  TempFolder folder;
  const std::string header = "{" + entry("z", "F32", "[1]", "[8,12]") + "," +
                             entry("empty", "F32", "[0]", "[8,8]") + "," +
                             entry("y", "F32", "[2]", "[0,8]") + "} \t\r\n";
  const auto read = load_safetensors(folder.write("ok", file_bytes(header, 12)));
  CHECK(read.size() == 3);
  CHECK(read.at("y").shape() == Shape{2});
  CHECK(load_safetensors(folder.write("none", file_bytes("{}", 0))).empty());
}

TEST_CASE("tensor: safetensors refuses what is no regular file") {
  TempFolder folder;
  const std::string missing = folder.path("missing");
  CHECK(error_text([&] { load_safetensors(missing); }) ==
        "load_safetensors: '" + missing + "' cannot be opened: No such file or directory");
  CHECK(error_text([&] { load_safetensors(folder.path()); }) ==
        "load_safetensors: '" + folder.path() + "' must be a regular file");
  const std::string pipe = folder.path("pipe");
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(error_text([&] { load_safetensors(pipe); }) ==
        "load_safetensors: '" + pipe + "' must be a regular file");
  CHECK(error_text([&] { load_safetensors("/dev/zero"); }) ==
        "load_safetensors: '/dev/zero' must be a regular file");
}

TEST_CASE("tensor: safetensors refuses a giant header before it reads one") {
  TempFolder folder;
  // 700 MB, but a hole: only the first 8 bytes are on disk.
  const std::string path = folder.write("giant", length_bytes(700'000'000));
  REQUIRE(truncate(path.c_str(), 700'000'008) == 0);
  CHECK(error_text([&] { load_safetensors(path); }) ==
        "load_safetensors: '" + path +
            "' breaks rule R1: header must have at most 100000000 bytes, got 700000000");
}

TEST_CASE("tensor: safetensors refuses 100,000 tensors over the same bytes in a second") {
  TempFolder folder;
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i)
    header += (i == 0 ? "" : ",") + entry("t" + std::to_string(i), "F32", "[1024]", "[0,4096]");
  const std::string path = folder.write("same", file_bytes(header + "}", 4096));
  const auto start = std::chrono::steady_clock::now();
  const std::string text = error_text([&] { load_safetensors(path); });
  CHECK(text.find("breaks rule R5") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
}

TEST_CASE("tensor: safetensors cut anywhere is an error") {
  TempFolder folder;
  const std::string path = folder.path("whole");
  save_safetensors(path, {{"w", zeros({512, 1024})}, {"b", ones({1000})}});
  std::string bytes = read_bytes(path);
  for (size_t cut = bytes.size() - 1; cut > 0;
       cut = cut > 4096 ? (cut - 1) / 4096 * 4096 : cut - 1) {
    REQUIRE(truncate(path.c_str(), static_cast<off_t>(cut)) == 0);
    const std::string text = error_text([&] { load_safetensors(path); });
    INFO(cut << ": " << text);
    REQUIRE(text.rfind("load_safetensors: '" + path + "' breaks rule R", 0) == 0);
  }
}

TEST_CASE("tensor: safetensors with any header bit flipped is an error or another valid file") {
  TempFolder folder;
  const std::string path = folder.path("x");
  save_safetensors(path, {{"w", arange(0, 6)}, {"flag", zeros({2}, {.dtype = DType::boolean})}},
                   {{"k", "v"}});
  const std::string bytes = read_bytes(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  int errors = 0;
  int others = 0;
  for (size_t bit = 0; bit < (8 + header) * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    folder.write("x", flipped);
    const std::string text = error_text([&] { load_safetensors(path); });
    if (text.empty()) {
      ++others;
    } else {
      ++errors;
      INFO(text);
      REQUIRE(text.rfind("load_safetensors: '" + path + "' breaks rule R", 0) == 0);
    }
  }
  CHECK(errors > 1000);
  CHECK(others > 0);  // a letter of a name, say
}

TEST_CASE("tensor: safetensors index names shards beside it and tensors that exist") {
  TempFolder folder;
  save_safetensors(folder.path("1.safetensors"), {{"a", ones({2})}, {"extra", ones({1})}});
  save_safetensors(folder.path("2.safetensors"), {{"b", zeros({3})}});
  const auto load = [&](const std::string& map) {
    return load_sharded_safetensors(folder.write("index.json", "{\"weight_map\":" + map + "}"));
  };
  const auto read = load(R"({"a":"1.safetensors","b":"2.safetensors"})");
  CHECK(read.size() == 2);
  CHECK(read.at("b").shape() == Shape{3});

  const std::string start = "load_safetensors: '" + folder.path("index.json") + "' breaks rule ";
  const auto text = [&](const std::string& map) { return error_text([&] { load(map); }); };
  for (const std::string bad : {"../1.safetensors", "sub/1.safetensors", "..", "", "c:\\\\x"}) {
    const std::string shown = bad == "c:\\\\x" ? "c:\\x" : bad;
    CHECK(text("{\"a\":\"" + bad + "\"}") ==
          start + "R12: shard of tensor 'a' must be a plain file name, got '" + shown + "'");
  }
  CHECK(text(R"({"a":"2.safetensors"})") ==
        start + "R12: tensor 'a' must exist in shard '2.safetensors'");
  CHECK(text(R"({"a":"1.safetensors","a":"1.safetensors"})") ==
        start + "R7: name 'a' appears twice");
  CHECK(text("3") == start + "R12: index must be a JSON object with an object 'weight_map'");
}

TEST_CASE("tensor: safetensors leaves nothing behind when it cannot write") {
  TempFolder folder;
  const std::string path = folder.path("x");
  save_safetensors(path, {{"a", ones({2})}});
  const std::string before = read_bytes(path);
  const auto untouched = [&] { return folder.files() == 1 && read_bytes(path) == before; };

  CHECK(error_text([&] {
          save_safetensors(path, {{"a", Tensor()}});
        }) == "save_safetensors: tensor 'a' must be defined");
  CHECK(untouched());
  CHECK(error_text([&] {
          save_safetensors(path, {{"__metadata__", ones({1})}});
        }) ==
        "save_safetensors: a tensor's name must have at most 4096 bytes and not be __metadata__, "
        "got '__metadata__'");
  CHECK(error_text([&] {
          save_safetensors(path, {{"\xff", ones({1})}});
        }) == "save_safetensors: '" + path + "' must get names and metadata in valid UTF-8");
  CHECK(untouched());

  const std::string nowhere = folder.path("no/x");
  CHECK(error_text([&] {
          save_safetensors(nowhere, {{"a", ones({2})}});
        }) == "save_safetensors: '" + nowhere + "' cannot be written: No such file or directory");
  // A folder in the way: the rename fails after everything was written.
  std::filesystem::create_directory(folder.path("dir"));
  CHECK(error_text([&] {
          save_safetensors(folder.path("dir"), {{"a", ones({2})}});
        }) == "save_safetensors: '" + folder.path("dir") + "' cannot be written: Is a directory");
  CHECK(folder.files() == 2);

  // A file-size limit stands in for a full disk: the write fails half way.
  struct rlimit limit;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = limit;
  small.rlim_cur = 4096;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string text = error_text([&] { save_safetensors(path, {{"a", ones({10000})}}); });
  setrlimit(RLIMIT_FSIZE, &limit);
  signal(SIGXFSZ, handler);
  CHECK(text == "save_safetensors: '" + path + "' cannot be written: File too large");
  CHECK(folder.files() == 2);
  CHECK(read_bytes(path) == before);
}
