// RingPlan: what one rank does in one collective over a mesh of connections: which stretches it
// sends, receives and reduces, and what must be done before. No sockets, no memory: tests read it.
// Invariant: the frames that rank a sends to rank b are those that b's plan receives from a, in
// that order; every element is reduced by one rank or by all, in order of rank; and in every
// collective each rank hears from every other one.
//
// Large reductions have two halves, woven into each other by segments: each rank owns a shard,
// which all the others send it and it reduces; then it sends the result to all. The steps go round
// the ring: each rank begins with the one behind it, so that at any time each one sends to one
// other and receives from one other. Each rank sends and receives 2 (n - 1) / n of the tensor, the
// least there is. Small ones, and all of two ranks, take one step: everyone sends everything to
// everyone.
#pragma once

#include <cstdint>
#include <vector>

#include "cairn/dist/call.h"

namespace cairn::dist {

enum class Area : uint8_t { input, output, scratch };

// Elements from the area's first.
struct Place {
  Area area = Area::output;
  int64_t offset = 0;

  bool operator==(const Place&) const = default;
};

// One frame: `count` elements from there, or to there.
struct Move {
  Place place;
  int64_t count = 0;
  int32_t after = 0;  // it may begin once so many entries of `tasks` are done
};

// Something to do between frames.
struct Task {
  enum class Kind : uint8_t {
    reduce,  // out = own part and those of all others, in order of rank
    copy,    // out = own
    pass,    // nothing: frames that wait for it may go on
  };
  Kind kind = Kind::pass;
  Place out, own;
  int64_t count = 0;
  // Of reduce: rank r's part lies in the scratch memory at parts + slot(r) * stride.
  int64_t parts = 0, stride = 0;
  // Which of `needs` it waits for.
  uint32_t first_need = 0, end_need = 0;
};

// So many frames to or from this peer must be through.
struct Need {
  int peer = 0;
  bool sent = false;  // else received
  int32_t frames = 0;
};

struct RingPlan {
  std::vector<std::vector<Move>> sends, recvs;  // by peer, in order
  std::vector<Task> tasks;                      // in order
  std::vector<Need> needs;
  int64_t scratch = 0;  // elements
};

struct RingPlanOptions {
  CallKind kind = CallKind::barrier;
  int rank = 0, size = 1;
  int64_t numel = 0;  // n of the table at Call
  int64_t item_size = 1;
  int root = -1, peer = -1;
  // Bytes of one frame, and up to how many bytes to all peers together go in one step.
  int64_t segment = 256 << 10;
  int64_t direct = 64 << 10;
};

RingPlan plan(const RingPlanOptions& options);

// Where the part of rank `of` lies among those of the other ranks.
constexpr int slot(int rank, int of) { return of < rank ? of : of - 1; }

}  // namespace cairn::dist
