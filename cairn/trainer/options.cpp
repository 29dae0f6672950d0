// The checks of TrainerOptions.
#include "cairn/trainer/options.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "cairn/dist/environment.h"
#include "cairn/tensor/cuda.h"
#include "cairn/trainer/ddp_strategy.h"
#include "cairn/trainer/precision.h"

namespace cairn::trainer {
namespace {

void check_limit(const char* name, const Limit& limit) {
  if (limit.is_count())
    check(limit.count() >= 0, "Trainer: ", name, " must be at least 0, got ", limit);
  else  // written so that NaN fails too
    check(limit.share() >= 0 && limit.share() <= 1, "Trainer: ", name,
          " must be a count or a share from 0.0 to 1.0, got ", limit);
}

void check_count(const char* name, int64_t value, int64_t least) {
  check(value >= least, "Trainer: ", name, " must be at least ", least, ", got ", value);
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// `local_rank`: the number of the GPU.
Device choose_device(const TrainerOptions& o, int local_rank) {
  const std::string accelerator = lower(o.accelerator);
  const bool gpu = accelerator == "gpu" || accelerator == "cuda";
  check(gpu || accelerator == "auto" || accelerator == "cpu",
        "Trainer: accelerator must be auto, cpu or gpu, got ", o.accelerator);
  const int there = cuda::device_count();
  check(!gpu || there > 0, "Trainer: accelerator must be auto or cpu without a usable GPU, got ",
        o.accelerator, "; ", cuda::unavailable());
  if (accelerator == "cpu" || there == 0) return kCPU;
  check(local_rank < there, "Trainer: devices must be at most the ", there,
        " GPUs of this host, got a process with local rank ", local_rank);
  return Device(DeviceType::cuda, local_rank);
}

// Processes on this host; absent: "auto".
std::optional<int> devices_of(const TrainerOptions& o) {
  const std::string devices = lower(o.devices.text());
  if (devices == "auto") return {};
  const bool number = !devices.empty() && devices.size() < 7 &&
                      devices.find_first_not_of("0123456789") == std::string::npos;
  check(number && std::stoi(devices) >= 1, "Trainer: devices must be auto or at least 1, got ",
        o.devices.text());
  return std::stoi(devices);
}

void check_single_device(const TrainerOptions& o) {
  const int devices = devices_of(o).value_or(1);
  check(devices == 1, "Trainer: devices must be 1 with strategy single_device, got ", devices,
        "; one process trains on one device");
  check(o.num_nodes.value_or(1) == 1,
        "Trainer: num_nodes must be 1 with strategy single_device, got ", *o.num_nodes);
}

// Where a rank of a group that the program made stands: that of a process which somebody started
// for this, or else a thread of this one.
dist::ClusterEnvironment environment_of(const dist::ProcessGroup& group) {
  dist::ClusterEnvironment environment = dist::detect_environment();
  if (environment.world_size == group.size() && environment.rank == group.rank())
    return environment;
  environment = {};
  environment.rank = environment.local_rank = group.rank();
  environment.world_size = environment.local_world_size = group.size();
  return environment;
}

// Where this process stands among those of the run.
dist::ClusterEnvironment checked_environment(const TrainerOptions& o) {
  dist::ClusterEnvironment environment = dist::detect_environment();
  const int devices = devices_of(o).value_or(environment.local_world_size);
  const int nodes = o.num_nodes.value_or(environment.num_nodes);
  check(environment.name != "single" || (devices == 1 && nodes == 1),
        "Trainer: devices and num_nodes must be 1 in a process that no launcher started, got ",
        devices, " and ", nodes, "; start the program by `cairn launch --workers ", devices,
        "`, or let it call launch_ranks first");
  dist::check_layout(environment, devices, nodes);
  return environment;
}

}  // namespace

void append_text(std::string& out, const Limit& limit) {
  if (limit.is_count())
    out += std::to_string(limit.count());
  else
    cairn::append_text(out, limit.share());  // the one for numbers: a double would become a Limit
}

int64_t Limit::of(int64_t size) const {
  if (is_count_) return std::min(count_, size);
  return static_cast<int64_t>(static_cast<double>(size) * share_);
}

TimeLimit::TimeLimit(const std::string& text) {
  int64_t part = 0;
  int parts = 0;
  int digits = 0;
  int64_t total = 0;
  static constexpr int64_t kUnit[] = {86400, 3600, 60, 1};
  bool ok = true;
  for (size_t i = 0; i <= text.size() && ok; ++i) {
    if (i == text.size() || text[i] == ':') {
      ok = digits > 0 && parts < 4;
      if (ok) total += part * kUnit[parts];
      ++parts;
      part = digits = 0;
    } else {
      ok = std::isdigit(static_cast<unsigned char>(text[i])) != 0 && ++digits <= 6;
      part = part * 10 + (text[i] - '0');
    }
  }
  check(ok && parts == 4, "Trainer: max_time must read days:hours:minutes:seconds, got '", text,
        "'");
  seconds_ = static_cast<double>(total);
}

void check_options(const TrainerOptions& o) {
  if (o.max_epochs) check_count("max_epochs", *o.max_epochs, -1);
  if (o.min_epochs) check_count("min_epochs", *o.min_epochs, 0);
  check_count("max_steps", o.max_steps, -1);
  if (o.min_steps) check_count("min_steps", *o.min_steps, 0);
  if (o.num_nodes)
    check(*o.num_nodes >= 1, "Trainer: num_nodes must be at least 1, got ", *o.num_nodes);
  if (o.max_time)
    check(o.max_time->seconds() > 0, "Trainer: max_time must be positive, got ",
          o.max_time->seconds(), " s");
  check_limit("limit_train_batches", o.limit_train_batches);
  check_limit("limit_val_batches", o.limit_val_batches);
  check_limit("limit_test_batches", o.limit_test_batches);
  check_limit("limit_predict_batches", o.limit_predict_batches);
  if (o.val_check_interval.is_count())
    check_count("val_check_interval", o.val_check_interval.count(), 1);
  else
    check(o.val_check_interval.share() > 0 && o.val_check_interval.share() <= 1,
          "Trainer: val_check_interval must be a count or a share above 0.0 up to 1.0, got ",
          o.val_check_interval);
  if (o.check_val_every_n_epoch)
    check_count("check_val_every_n_epoch", *o.check_val_every_n_epoch, 1);
  else
    check(o.val_check_interval.is_count(),
          "Trainer: val_check_interval must be an integer without "
          "check_val_every_n_epoch, got ",
          o.val_check_interval);
  check_count("num_sanity_val_steps", o.num_sanity_val_steps, -1);
  check_count("log_every_n_steps", o.log_every_n_steps, 0);
  check_count("accumulate_grad_batches", o.accumulate_grad_batches, 1);
  if (o.gradient_clip_val)
    check(*o.gradient_clip_val >= 0 && std::isfinite(*o.gradient_clip_val),
          "Trainer: gradient_clip_val must be finite and at least 0, got ", *o.gradient_clip_val);
  check(o.gradient_clip_algorithm == "norm" || o.gradient_clip_algorithm == "value",
        "Trainer: gradient_clip_algorithm must be norm or value, got ", o.gradient_clip_algorithm);
  const auto check_switch = [](const char* name, const std::string& value) {
    check(value == "auto" || value == "off", "Trainer: ", name, " must be auto or off, got ",
          value);
  };
  check_switch("resident_data", o.resident_data);
  check_switch("capture_steps", o.capture_steps);
  (void)Precision(o.precision);
  check(o.profiler.empty() || o.profiler == "simple",
        "Trainer: profiler must be simple or empty, got ", o.profiler);
  for (const auto& callback : o.callbacks)
    check(static_cast<bool>(callback), "Trainer: callbacks must not be null");
}

Held<Strategy> choose_strategy(const TrainerOptions& o) {
  Held<Strategy> strategy = o.strategy.strategy();
  const std::string name = lower(o.strategy.name());
  DDPStrategyOptions ddp;
  ddp.find_unused_parameters = name == "ddp_find_unused_parameters_true";
  const bool wants_ddp =
      name == "ddp" || ddp.find_unused_parameters || name == "ddp_find_unused_parameters_false";
  check(strategy || wants_ddp || name == "auto" || name == "single_device",
        "Trainer: strategy must be auto, single_device, ddp, ddp_find_unused_parameters_true or "
        "ddp_find_unused_parameters_false, got ",
        o.strategy.name());
  auto* given = dynamic_cast<DDPStrategy*>(strategy.get());
  if (name == "single_device" || (strategy && given == nullptr)) {
    check_single_device(o);
    return strategy ? strategy : SingleDeviceStrategy(choose_device(o, 0));
  }
  if (given != nullptr && given->options().group != nullptr) {
    const int devices = devices_of(o).value_or(given->world_size());
    check(devices == given->world_size(), "Trainer: devices must be the ", given->world_size(),
          " ranks of the strategy's group, got ", devices);
    if (o.sync_batchnorm) given->set_sync_batchnorm();
    const dist::ClusterEnvironment environment = environment_of(*given->options().group);
    // A process that sees one GPU alone was given it.
    const int gpu = cuda::device_count() == 1 ? 0 : environment.local_rank;
    given->place(choose_device(o, gpu), environment);
    return strategy;
  }
  dist::ClusterEnvironment environment = checked_environment(o);
  if (name == "auto" && environment.world_size == 1)
    return SingleDeviceStrategy(choose_device(o, 0));
  if (given == nullptr) {
    strategy = DDPStrategy(std::move(ddp));
    given = static_cast<DDPStrategy*>(strategy.get());
  }
  if (o.sync_batchnorm) given->set_sync_batchnorm();
  given->place(choose_device(o, environment.local_rank), std::move(environment));
  return strategy;
}

}  // namespace cairn::trainer
