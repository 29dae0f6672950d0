// The collectives' contract, as every backend must keep it: ranks are threads of this process.
// Invariant: nothing here knows which backend it runs; expectations are exact unless said
// otherwise.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cairn/dist/process_group.h"

namespace cairn::test {

// Makes one rank's group; the options hold a store that all ranks share.
using MakeGroup = std::function<std::shared_ptr<dist::ProcessGroup>(dist::GroupOptions)>;
using RankBody = std::function<void(dist::ProcessGroup&)>;

// Runs body(group) on `size` threads. Throws the first rank's error, if any, as "rank 1: …".
void run_ranks(const MakeGroup& make, int size, const RankBody& body,
               dist::Milliseconds timeout = std::chrono::seconds(60));
// The same; returns what each rank threw, by rank, "" for nothing.
std::vector<std::string> errors_of_ranks(const MakeGroup& make, int size, const RankBody& body,
                                         dist::Milliseconds timeout = std::chrono::seconds(60));

// All of the contract for a group of this size but the large tensor. Throws what is wrong.
void check_contract(const MakeGroup& make, int size);
// An all_reduce, a broadcast and an all_gather of `numel` floats.
void check_large(const MakeGroup& make, int size, int64_t numel);

// The parts of check_contract.
void check_reductions(const MakeGroup& make, int size);  // dtypes, reductions, sizes, layouts
void check_extremes(const MakeGroup& make, int size);    // overflow, NaN
void check_moves(const MakeGroup& make, int size);       // whatever does not reduce
void check_same_bits(const MakeGroup& make, int size);   // again and again, on all ranks
void check_zeros(const MakeGroup& make, int size);       // all_reduce with known zeros
void check_async(const MakeGroup& make, int size);       // many calls in flight
void check_groups(const MakeGroup& make, int size);      // subgroups, several at once
void check_mismatches(const MakeGroup& make, int size);  // size >= 2 from here on
void check_silence(const MakeGroup& make, int size);     // time-out
void check_early_end(const MakeGroup& make, int size);   // one rank finishes before the others

}  // namespace cairn::test
