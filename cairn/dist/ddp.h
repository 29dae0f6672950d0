// DistributedDataParallel: keeps a model's gradients equal on all ranks of a group.
// Invariant: it hooks parameters and never wraps the module. A backward that synchronises leaves in
// every gradient the mean over all ranks, bit for bit the same on each; nothing else changes for
// whoever trains.
//
//   dist::DistributedDataParallel ddp(model.named_parameters(), model.named_buffers(), group);
//   for (const Batch& batch : loader) {
//     optimizer.zero_grad();
//     backward(cross_entropy(model(batch.input), batch.target));  // gradients are means now
//     optimizer.step();
//   }
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

enum class GradientCompression : uint8_t { none, bf16 };

// When buckets are reduced.
enum class Overlap : uint8_t {
  automatic,   // as the backend gains most by
  boundaries,  // by the thread of the backward, each as soon as it is whole
  at_end,      // by the same thread, all of them at the end of the backward
  concurrent,  // by the backend while backward goes on
};

// The same on all ranks.
struct DdpOptions {
  // Buckets are ranges of the gradients in reverse order of the parameters: a small one, whose
  // gradients come first, then bigger ones. In MiB.
  double bucket_cap_mb = 25;
  double first_bucket_mb = 1;
  // Buffers take rank 0's values after each backward that synchronises, which is before the next
  // forward.
  bool broadcast_buffers = true;
  // Parameters without a gradient: they count as 0 where other ranks have one, and keep none where
  // no rank has. Off: an error that names them.
  bool find_unused_parameters = false;
  // bf16: gradients travel as bf16; they are summed in f32 and rounded twice.
  GradientCompression gradient_compression = GradientCompression::none;
  Overlap overlap = Overlap::automatic;
};

struct JoinOptions {
  // Off: gradients are means over the ranks that are still at work.
  bool divide_by_initial_world_size = true;
  // Ranks with fewer steps than others are an error on all ranks.
  bool throw_on_early_termination = false;
};

class DistributedDataParallel {
 public:
  // Names, shapes and dtypes of parameters and buffers, and the options, are compared: where they
  // differ, all ranks get an Error that names the first difference. Then all take rank 0's values.
  // Parameters that require a gradient are packed into arenas (see arena.h), whose gradients move
  // to memory that the backend may share, and buffers into one block; so make this before asking
  // for gradients, and after moving the module to its device. Parameters that stop to require a
  // gradient later count as unused.
  DistributedDataParallel(const NamedTensors& parameters, const NamedTensors& buffers,
                          std::shared_ptr<ProcessGroup> group, const DdpOptions& options = {});
  ~DistributedDataParallel();
  DistributedDataParallel(const DistributedDataParallel&) = delete;
  DistributedDataParallel& operator=(const DistributedDataParallel&) = delete;

  const DdpOptions& options() const;
  ProcessGroup& group() const;

  // While one lives, backward leaves gradients as they are on this rank; the first backward after
  // it reduces what was accumulated.
  class NoSync {
   public:
    explicit NoSync(DistributedDataParallel& ddp) : ddp_(ddp) { ddp_.set_sync(false); }
    ~NoSync() { ddp_.set_sync(true); }
    NoSync(const NoSync&) = delete;
    NoSync& operator=(const NoSync&) = delete;

   private:
    DistributedDataParallel& ddp_;
  };
  [[nodiscard]] NoSync no_sync() { return NoSync(*this); }
  void set_sync(bool sync);

  // Runs `body`, in which ranks may make different numbers of steps: those that are done take part
  // in the others' collectives, with gradients of 0, until all are. In the end all have the
  // parameters and buffers of the one that worked longest (the optimizers' states stay apart).
  // There must be no other collectives in `body`. What body throws comes out at once.
  void join(const std::function<void()>& body, const JoinOptions& options = {});

  // Buffers take rank 0's values now, whatever the options say.
  void broadcast_buffers();

  // Backwards that synchronised.
  int64_t steps() const;
  // Time that this rank spent in collectives of backwards, most of it waiting for slower ranks.
  double seconds_waited() const;
  // Elements of each bucket, in the order in which they are reduced.
  std::vector<int64_t> bucket_sizes() const;

 private:
  class Reducer;
  std::shared_ptr<Reducer> reducer_;  // hooks hold it weakly
};

}  // namespace cairn::dist
