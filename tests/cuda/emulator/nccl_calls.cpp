// The collectives' bytes. Floats are summed in double and rounded once: NCCL's own order and
// roundings are a matter of its algorithms. As there, min and max pass over NaNs.
#include "tests/cuda/emulator/nccl_calls.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cairn/tensor/dtype.h"

namespace cairn::emulator {
namespace {

template <class T>
T combined(T a, T b, ncclRedOp_t op) {
  if constexpr (std::is_floating_point_v<T>) {
    if (op == ncclMin) return std::fmin(a, b);
    if (op == ncclMax) return std::fmax(a, b);
  }
  if (op == ncclMin) return b < a ? b : a;
  if (op == ncclMax) return a < b ? b : a;
  return op == ncclProd ? a * b : a + b;
}

// Integers wrap around, which is defined for unsigned ones alone.
template <class T>
T combined_of(const std::vector<const T*>& parts, size_t i, ncclRedOp_t op) {
  const bool compares = op == ncclMin || op == ncclMax;
  if constexpr (std::is_integral_v<T>) {
    if (!compares) {
      uint64_t out = static_cast<uint64_t>(parts[0][i]);
      for (size_t r = 1; r < parts.size(); ++r)
        out = combined<uint64_t>(out, static_cast<uint64_t>(parts[r][i]), op);
      return static_cast<T>(out);
    }
    T out = parts[0][i];
    for (size_t r = 1; r < parts.size(); ++r) out = combined<T>(out, parts[r][i], op);
    return out;
  } else {
    auto out = static_cast<double>(parts[0][i]);
    for (size_t r = 1; r < parts.size(); ++r)
      out = combined<double>(out, static_cast<double>(parts[r][i]), op);
    return static_cast<T>(op == ncclAvg ? out / static_cast<double>(parts.size()) : out);
  }
}

template <class Fn>
void with_type(ncclDataType_t type, Fn&& fn) {
  switch (type) {
    case ncclUint8:
      return fn.template operator()<uint8_t>();
    case ncclInt32:
      return fn.template operator()<int32_t>();
    case ncclInt64:
      return fn.template operator()<int64_t>();
    case ncclFloat16:
      return fn.template operator()<float16>();
    case ncclBfloat16:
      return fn.template operator()<bfloat16>();
    case ncclFloat64:
      return fn.template operator()<double>();
    default:
      return fn.template operator()<float>();
  }
}

size_t size_of(ncclDataType_t type) {
  size_t out = 0;
  with_type(type, [&]<class T>() { out = sizeof(T); });
  return out;
}

// `count` elements from number `begin` on.
std::vector<std::byte> reduced(const std::vector<const NcclCall*>& calls, size_t begin,
                               size_t count) {
  std::vector<std::byte> out(count * size_of(calls[0]->type));
  with_type(calls[0]->type, [&]<class T>() {
    std::vector<const T*> parts;
    for (const NcclCall* c : calls) parts.push_back(static_cast<const T*>(c->from) + begin);
    for (size_t i = 0; i < count; ++i) {
      const T value = combined_of<T>(parts, i, calls[0]->op);
      std::memcpy(out.data() + i * sizeof(T), &value, sizeof(T));
    }
  });
  return out;
}

void write(void* to, const std::vector<std::byte>& bytes) {
  if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
}
std::vector<std::byte> read(const NcclCall& call) {
  const auto* const from = static_cast<const std::byte*>(call.from);
  return {from, from + bytes_of(call)};
}

}  // namespace

bool is_collective(const NcclCall& call) {
  return call.kind != NcclKind::send && call.kind != NcclKind::recv;
}
size_t bytes_of(const NcclCall& call) { return call.count * size_of(call.type); }

bool same_call(const NcclCall& a, const NcclCall& b) {
  return a.kind == b.kind && a.count == b.count && a.type == b.type && a.op == b.op &&
         a.peer == b.peer && a.captured == b.captured;
}

// Everything is read before anything is written: calls may be in place.
void run_collective(const std::vector<const NcclCall*>& calls) {
  const NcclCall& first = *calls[0];
  const auto root = static_cast<size_t>(first.peer);
  std::vector<std::vector<std::byte>> results;
  switch (first.kind) {
    case NcclKind::all_reduce:
    case NcclKind::reduce:
      results.push_back(reduced(calls, 0, first.count));
      break;
    case NcclKind::reduce_scatter:
      for (size_t r = 0; r < calls.size(); ++r)
        results.push_back(reduced(calls, r * first.count, first.count));
      break;
    case NcclKind::all_gather:
      results.emplace_back();
      for (const NcclCall* c : calls) {
        const std::vector<std::byte> part = read(*c);
        results[0].insert(results[0].end(), part.begin(), part.end());
      }
      break;
    default:
      results.push_back(read(*calls[root]));
  }
  for (size_t r = 0; r < calls.size(); ++r)
    if (first.kind != NcclKind::reduce || r == root)
      write(calls[r]->to, results[first.kind == NcclKind::reduce_scatter ? r : 0]);
}

}  // namespace cairn::emulator
