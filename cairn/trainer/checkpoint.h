// Checkpoint: everything a run needs to go on, in memory and as one file.
// Invariant: a file is read whole and its checksum verified before anything of it is used; a file
// being written appears under its name complete, or not at all.
//
// The file is safetensors. Tensors: "state_dict.<name>" and "<section>.<name>" for the others, with
// "rank<r>." before those that are another rank's than 0.
// Metadata: "format" and "format_version", "checksum" (XXH3-64 over the tensors and the JSON), and
// "checkpoint", a JSON object with the sections below.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cairn/nn/module.h"
#include "cairn/tensor/tensor.h"
#include "cairn/trainer/value.h"

namespace cairn::trainer {

// Files of a higher version are refused.
inline constexpr int64_t kCheckpointVersion = 1;

struct Checkpoint {
  using Tensors = std::map<std::string, Tensor>;

  int64_t epoch = 0;          // the epoch it was made in, counted from 0
  int64_t global_step = 0;    // optimizer steps done
  std::string version;        // of the library that wrote it
  bool weights_only = false;  // no more than state_dict and hyper_parameters

  Tensors state_dict;         // of the TrainingModule: parameters and persistent buffers
  Tensors optimizer_tensors;  // moments and the like
  State optimizer;
  State lr_schedulers;
  State precision;    // the loss scale, of "16-mixed"
  Tensors gradients;  // only inside an accumulation window
  State progress;     // the loops
  State metrics;      // means of the running epoch
  State rng;          // the default generator
  State loader;       // the training loader's place and order
  State datamodule;
  State loggers;                           // how far each log is, by its number
  std::map<std::string, State> callbacks;  // by state_key()
  State hyper_parameters;
  State user;  // for on_save_checkpoint and on_load_checkpoint
  Tensors user_tensors;

  // Of a run by several processes: what each has for itself. `metrics`, `rng` and `gradients` above
  // are rank 0's; these are those of ranks 1, 2, … where all took part in saving.
  struct Own {
    State metrics;
    State rng;
    Tensors gradients;
  };
  std::vector<Own> other_ranks;
};

// A state as text (JSON), and back. Error for texts that are not UTF-8, or not of a state.
std::string text_of(const State& state);
State state_of(const std::string& text);

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint);
// Throws Error with one sentence for a file that is missing, truncated, corrupt, no checkpoint, or
// of a newer version.
Checkpoint load_checkpoint(const std::string& path);

// Copies the weights into `model`; keys and shapes must agree, else one Error names the file and
// lists every missing, unexpected and mismatched key.
void load_weights(nn::Module& model, const Checkpoint& checkpoint, const std::string& path);

}  // namespace cairn::trainer
