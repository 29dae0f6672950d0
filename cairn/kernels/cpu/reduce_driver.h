// Drives a reduction: cuts it into pieces by its plan, runs them on the pool and combines them in
// order.
// Invariant: pieces and the order of combining depend on the plan alone; partial results live on
// the stack.
#pragma once

#include <algorithm>

#include "cairn/kernels/cpu/reduce_ops.h"
#include "cairn/kernels/cpu/reduce_plan.h"
#include "cairn/tensor/parallel.h"

namespace cairn::kernels::cpu {

constexpr int64_t kPieceElements = 32768;  // elements that are worth a thread
constexpr int64_t kTile = 256;             // columns reduced side by side
constexpr int64_t kMaxPartials = 64;       // pieces, or tiles of columns, that wait on the stack
constexpr int64_t kEnoughUnits = 32;  // outputs that keep all threads busy without cutting sums

// Partial results in levels, so that long sums keep the accuracy of a tree.
template <class Op, class Acc>
class Cascade {
 public:
  void add(Acc value) {
    Op::combine(level_[0], value);
    for (int i = 0; i + 1 < kLevels && ++count_[i] == kFanIn; ++i) {
      Op::combine(level_[i + 1], level_[i]);
      level_[i] = Op::template identity<Acc>();
      count_[i] = 0;
    }
  }
  Acc total() const {
    Acc sum = level_[kLevels - 1];
    for (int i = kLevels - 2; i >= 0; --i) Op::combine(sum, level_[i]);
    return sum;
  }

 private:
  static constexpr int kLevels = 4;
  static constexpr int kFanIn = 32;
  Acc level_[kLevels] = {Op::template identity<Acc>(), Op::template identity<Acc>(),
                         Op::template identity<Acc>(), Op::template identity<Acc>()};
  int count_[kLevels] = {};
};

template <class Op, class In, class Acc>
class Reduction {
 public:
  Reduction(const ReducePlan& plan, const In* in, const ReduceRows<In, Acc>& rows)
      : plan_(plan), in_(in), rows_(rows), length_(plan.reduced.count * plan.run) {}

  // finish(out_offset, acc) is called once for every output.
  template <class Finish>
  void run(Finish&& finish) const {
    if (plan_.columns)
      run_columns(finish);
    else
      run_rows(finish);
  }

 private:
  // Elements [lo, hi) of one output's input, counted in walking order.
  Acc reduce_range(const In* base, int64_t lo, int64_t hi) const {
    if (lo >= hi) return Op::template identity<Acc>();  // sizes of 0 must not divide
    if (plan_.reduced.rank == 0)
      return rows_.run(base + lo * plan_.run_step, plan_.run_step, hi - lo);
    Cascade<Op, Acc> total;
    Walker at(plan_.reduced, lo / plan_.run);
    int64_t skip = lo % plan_.run;
    while (lo < hi) {
      const int64_t n = std::min(plan_.run - skip, hi - lo);
      total.add(rows_.run(base + at.in() + skip * plan_.run_step, plan_.run_step, n));
      lo += n;
      skip = 0;
      at.next();
    }
    return total.total();
  }

  template <class Finish>
  void run_rows(Finish&& finish) const {
    const int64_t outputs = plan_.kept.count;
    const int64_t pieces = outputs >= kEnoughUnits
                               ? 1
                               : std::clamp<int64_t>(length_ / kPieceElements, 1, kMaxPartials);
    if (pieces == 1) {
      const int64_t grain = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(length_, 1));
      parallel_for(0, outputs, grain, [&](int64_t lo, int64_t hi) {
        Walker at(plan_.kept, lo);
        for (int64_t o = lo; o < hi; ++o, at.next())
          finish(at.out(), reduce_range(in_ + at.in(), 0, length_));
      });
      return;
    }
    Acc partial[kEnoughUnits * kMaxPartials];
    parallel_for(0, outputs * pieces, 1, [&](int64_t lo, int64_t hi) {
      for (int64_t item = lo; item < hi; ++item) {
        const int64_t piece = item % pieces;
        const Walker at(plan_.kept, item / pieces);
        partial[item] =
            reduce_range(in_ + at.in(), length_ * piece / pieces, length_ * (piece + 1) / pieces);
      }
    });
    Walker at(plan_.kept, 0);
    for (int64_t o = 0; o < outputs; ++o, at.next()) {
      Acc total = Op::template identity<Acc>();
      for (int64_t piece = 0; piece < pieces; ++piece)
        Op::combine(total, partial[o * pieces + piece]);
      finish(at.out(), total);
    }
  }

  static void combine_tile(Acc* into, Acc* from, int64_t cols) {
    for (int64_t c = 0; c < cols; ++c) {
      Op::combine(into[c], from[c]);
      from[c] = Op::template identity<Acc>();
    }
  }

  // Rows [lo, hi) of one tile of columns into acc.
  void reduce_tile(Acc* acc, const In* base, int64_t lo, int64_t hi, int64_t cols) const {
    constexpr int64_t kRows = 64;  // rows before a level is emptied into the next
    Acc level[2][kTile];
    for (auto& l : level) std::fill_n(l, cols, Op::template identity<Acc>());
    std::fill_n(acc, cols, Op::template identity<Acc>());
    if (lo >= hi) return;
    Walker at(plan_.reduced, lo / plan_.run);
    int64_t skip = lo % plan_.run;
    int64_t in_level0 = 0;
    int64_t in_level1 = 0;
    while (lo < hi) {
      const int64_t n = std::min({plan_.run - skip, hi - lo, kRows - in_level0});
      rows_.columns(level[0], base + at.in() + skip * plan_.run_step, plan_.run_step, n,
                    plan_.width_in, cols);
      lo += n;
      skip += n;
      if (skip == plan_.run) {
        skip = 0;
        at.next();
      }
      in_level0 += n;
      if (in_level0 < kRows) continue;
      combine_tile(level[1], level[0], cols);
      in_level0 = 0;
      if (++in_level1 < kRows) continue;
      combine_tile(acc, level[1], cols);
      in_level1 = 0;
    }
    combine_tile(level[1], level[0], cols);
    combine_tile(acc, level[1], cols);
  }

  template <class Finish>
  void run_columns(Finish&& finish) const {
    const int64_t tiles = (plan_.width + kTile - 1) / kTile;
    const int64_t units = plan_.kept.count * tiles;
    const int64_t elements = length_ * std::min(plan_.width, kTile);
    const int64_t pieces = units >= kEnoughUnits
                               ? 1
                               : std::clamp<int64_t>(std::min(elements / kPieceElements, length_),
                                                     1, kMaxPartials / std::max<int64_t>(units, 1));
    const auto columns_of = [&](int64_t tile) {
      return std::min(kTile, plan_.width - tile * kTile);
    };
    const auto write = [&](int64_t out, int64_t tile, const Acc* acc) {
      for (int64_t c = 0; c < columns_of(tile); ++c)
        finish(out + (tile * kTile + c) * plan_.width_out, acc[c]);
    };
    if (pieces == 1) {
      const int64_t grain = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(elements, 1));
      parallel_for(0, units, grain, [&](int64_t lo, int64_t hi) {
        Acc acc[kTile];
        for (int64_t unit = lo; unit < hi; ++unit) {
          const int64_t tile = unit % tiles;
          const Walker at(plan_.kept, unit / tiles);
          reduce_tile(acc, in_ + at.in() + tile * kTile * plan_.width_in, 0, length_,
                      columns_of(tile));
          write(at.out(), tile, acc);
        }
      });
      return;
    }
    Acc partial[kMaxPartials][kTile];
    parallel_for(0, units * pieces, 1, [&](int64_t lo, int64_t hi) {
      for (int64_t item = lo; item < hi; ++item) {
        const int64_t unit = item / pieces;
        const int64_t piece = item % pieces;
        const int64_t tile = unit % tiles;
        const Walker at(plan_.kept, unit / tiles);
        reduce_tile(partial[item], in_ + at.in() + tile * kTile * plan_.width_in,
                    length_ * piece / pieces, length_ * (piece + 1) / pieces, columns_of(tile));
      }
    });
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t tile = unit % tiles;
      Acc* total = partial[unit * pieces];
      for (int64_t piece = 1; piece < pieces; ++piece)
        combine_tile(total, partial[unit * pieces + piece], columns_of(tile));
      write(Walker(plan_.kept, unit / tiles).out(), tile, total);
    }
  }

  const ReducePlan& plan_;
  const In* in_;
  const ReduceRows<In, Acc>& rows_;
  int64_t length_;  // reduced elements behind one output
};

}  // namespace cairn::kernels::cpu
