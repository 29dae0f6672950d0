// launch_ranks(): a program that starts itself once for each rank.
// Invariant: the process that was started plainly becomes the controller of the ranks, and is none
// itself: it trains nothing, so that it can tell how they ended whatever happens to them.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "cairn/dist/launcher.h"

namespace cairn::trainer {

// To be called at the start of main(), before any threads. In a process that a launcher started
// (this function, `cairn launch`, torchrun, srun, …), and for one worker, it returns nothing, and
// the program goes on. Else it runs the program `workers` times with the same arguments, and
// returns how they ended: then main() shows text() and returns exit_status. `show` says what to
// write of each line of a rank, see LaunchOptions; without it they are not shown.
//
//   if (const auto ended = trainer::launch_ranks(workers, argc, argv, show)) {
//     std::fputs(ended->text().c_str(), stderr);
//     return ended->exit_status;
//   }
//
// (Lightning's Trainer starts the missing ranks by itself, when fit() is called, and becomes rank
// 0. A C++ program decides for itself whether main() may run again.)
std::optional<dist::LaunchResult> launch_ranks(
    int workers, int argc, const char* const* argv,
    std::function<std::string(const dist::OutputLine&)> show = {});

}  // namespace cairn::trainer
