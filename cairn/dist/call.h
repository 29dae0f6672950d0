// Call: one collective, as a backend gets it and as messages and the flight recorder tell of it.
// Invariant: the calls of a group are numbered from 0 in the order in which they were asked for,
// and all ranks of a group must ask for equal ones in the same order.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "cairn/dist/deadline.h"
#include "cairn/kernels/combine.h"
#include "cairn/kernels/zero_ranges.h"
#include "cairn/tensor/tensor.h"

namespace cairn::dist {

using kernels::ReduceOp;

enum class CallKind : uint8_t {
  all_reduce,
  reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  scatter,
  gather,
  all_to_all,
  send,
  recv,
  barrier,
};
std::string_view name_of(CallKind kind);
inline void append_text(std::string& out, CallKind kind) { out += name_of(kind); }
// Whether all ranks take part, not two.
inline bool is_collective(CallKind kind) {
  return kind != CallKind::send && kind != CallKind::recv;
}

// What all ranks must agree on, as one rank tells it. Trivially copyable, so that it can travel.
struct CallShape {
  uint64_t sequence = 0;
  // Of all sizes and their number; 0 for a barrier.
  uint64_t shape_hash = 0;
  int64_t numel = 0;
  int32_t root = -1;  // of reduce, broadcast, scatter, gather; else -1
  CallKind kind = CallKind::barrier;
  DType dtype = DType::u8;
  ReduceOp op = ReduceOp::sum;
  uint8_t unused = 0;

  bool operator==(const CallShape&) const = default;
};

struct Call {
  CallShape is;
  Shape shape;    // of one rank's tensor
  int peer = -1;  // of send and recv
  Milliseconds timeout = kDefaultTimeout;
  Deadline deadline{Milliseconds(0)};

  // Contiguous (every element once, row-major) and on the group's kind of device.
  //                  input                          output
  // all_reduce       = output                       [n]
  // reduce           = output                       [n], written on root alone
  // reduce_scatter   [size n]                       [n]
  // all_gather       [n]                            [size n]
  // broadcast        = output                       [n]
  // scatter          [size n] on root, undefined    [n]
  // gather           [n]                            [size n] on root, undefined
  // all_to_all       [size n]                       [size n]
  // send, recv       [n] / undefined                undefined / [n]
  // barrier          undefined                      undefined
  Tensor input, output;

  // Of all_reduce: stretches of the tensor that this rank knows to hold zeros. Those that every
  // rank knows may be left out, since their sum is 0.
  kernels::ZeroRanges zeros;
};

// "all_reduce #41 (sum) of f32 [64, 3]"; with a peer "send #3 of f32 [2] to rank 1".
std::string describe(const Call& call);
std::string describe(const CallShape& is, const Shape& shape, int peer = -1);

// A call as other ranks hear of it. Trivially copyable.
struct CallNotice {
  CallShape is;
  int64_t dims = 0;
  std::array<int64_t, kMaxRank> sizes{};

  CallNotice() = default;
  explicit CallNotice(const Call& call);
};
std::string describe(const CallNotice& notice, int peer = -1);
// Nothing where all notices, by rank, are of the call; else the sentence that lists them.
std::optional<std::string> mismatch(const Call& call, std::span<const CallNotice> all,
                                    std::string_view group);

}  // namespace cairn::dist
