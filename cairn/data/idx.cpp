// The IDX reader. Invariant: memory is taken only after the header has passed every check.
#include "cairn/data/idx.h"

#include <array>

#include "cairn/data/byte_reader.h"
#include "cairn/tensor/factory.h"

namespace cairn::data {
namespace {

constexpr const char* kOp = "read_idx";
constexpr uint8_t kTypeU8 = 8;

int64_t big_endian(const uint8_t* b) {
  return int64_t{b[0]} << 24 | int64_t{b[1]} << 16 | int64_t{b[2]} << 8 | int64_t{b[3]};
}

void check_magic(const std::array<uint8_t, 4>& magic, const std::string& name, int64_t rank) {
  check(magic[0] == 0 && magic[1] == 0, kOp, ": first two bytes of ", name, " must be 0 0, got ",
        magic[0], " ", magic[1]);
  check(magic[2] == kTypeU8, kOp, ": type byte of ", name, " must be 8 (u8), got ", magic[2]);
  if (rank > 0)
    check(magic[3] == rank, kOp, ": number of dimensions of ", name, " must be ", rank, ", got ",
          magic[3]);
  else
    check(magic[3] >= 1 && magic[3] <= kMaxRank, kOp, ": number of dimensions of ", name,
          " must be 1 to ", kMaxRank, ", got ", magic[3]);
}

}  // namespace

IdxFile read_idx_file(const std::string& path, const IdxOptions& options) {
  const std::string name = cat("'", options.name.empty() ? path : options.name, "'");
  check(options.rank >= 0 && options.rank <= kMaxRank, kOp, ": rank must be 0 to ", kMaxRank,
        ", got ", options.rank);
  ByteReader reader(path, kOp, name);

  std::array<uint8_t, 4> magic{};
  size_t got = reader.read(magic.data(), magic.size());
  check(got == magic.size(), kOp, ": header of ", name, " must have at least 4 bytes, got ", got);
  check_magic(magic, name, options.rank);

  const size_t rank = magic[3];
  std::array<uint8_t, size_t{4} * kMaxRank> sizes{};
  got = reader.read(sizes.data(), 4 * rank);
  check(got == 4 * rank, kOp, ": header of ", name, " must have ", 4 + 4 * rank, " bytes, got ",
        4 + got);
  Shape shape(rank, 0);
  int64_t bytes = 1;
  bool fits = true;
  for (size_t i = 0; i < rank; ++i) {
    shape[i] = big_endian(&sizes[4 * i]);
    fits = fits && (shape[i] == 0 || bytes <= options.max_bytes / shape[i]);
    if (fits) bytes *= shape[i];
  }
  check(fits, kOp, ": content of ", name, " must be at most ", options.max_bytes,
        " bytes, got dimensions ", shape);

  IdxFile file{empty(shape, {.dtype = DType::u8})};
  got = reader.read(file.data.raw_data(), static_cast<size_t>(bytes));
  check(static_cast<int64_t>(got) == bytes, kOp, ": content of ", name, " must be ", bytes,
        " bytes for dimensions ", shape, ", got ", got);
  check(reader.at_end(), kOp, ": ", name, " must end after ", bytes,
        " bytes of content for dimensions ", shape, ", got more");
  file.crc32 = reader.crc32();
  return file;
}

Tensor read_idx(const std::string& path, const IdxOptions& options) {
  return read_idx_file(path, options).data;
}

}  // namespace cairn::data
