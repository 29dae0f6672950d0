// Checkpoint files: the JSON sections, the checksum, and the errors.
// Invariant: the checksum covers names, types, shapes, bytes and the JSON, in a fixed order.
#include "cairn/trainer/checkpoint.h"

#include <xxhash.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "cairn/tensor/raw.h"
#include "cairn/tensor/safetensors.h"

namespace cairn::trainer {
namespace {

using nlohmann::json;
constexpr const char* kFormat = "cairn.checkpoint";

// The sections of tensors and of states, so that saving and loading cannot differ.
template <class C, class Fn>
void for_each_tensors(C& c, Fn&& fn) {
  fn("state_dict", c.state_dict);
  fn("optimizer", c.optimizer_tensors);
  fn("gradients", c.gradients);
  fn("user", c.user_tensors);
  for (size_t i = 0; i < c.other_ranks.size(); ++i)
    fn(cat("rank", i + 1, ".gradients"), c.other_ranks[i].gradients);
}
template <class C, class Fn>
void for_each_state(C& c, Fn&& fn) {
  fn("optimizer", c.optimizer);
  fn("lr_schedulers", c.lr_schedulers);
  fn("precision", c.precision);
  fn("loops", c.progress);
  fn("metrics", c.metrics);
  fn("rng", c.rng);
  fn("loader", c.loader);
  fn("datamodule", c.datamodule);
  fn("loggers", c.loggers);
  fn("hyper_parameters", c.hyper_parameters);
  fn("user", c.user);
}

// JSON has no NaN and no infinity: those are written as {"number": "nan"}.
json to_json(const Value& value) {
  if (value.is_bool()) return value.as_bool();
  if (value.is_int()) return value.as_int();
  if (value.is_text()) return value.as_text();
  const double number = value.as_double();
  if (std::isfinite(number)) return number;
  return {{"number", std::isnan(number) ? "nan" : (number > 0 ? "inf" : "-inf")}};
}

json to_json(const State& state) {
  json out = json::object();
  for (const auto& [key, value] : state) out[key] = to_json(value);
  return out;
}

Value value_from(const json& j) {
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number_integer()) return j.get<int64_t>();
  if (j.is_number_float()) return j.get<double>();
  if (j.is_string()) return j.get<std::string>();
  const std::string text = j.at("number").get<std::string>();
  if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  return text == "inf" ? inf : -inf;
}

State state_from(const json& j) {
  State out;
  for (const auto& [key, value] : j.items()) out[key] = value_from(value);
  return out;
}

std::string dump(const json& j, const char* op) {
  try {
    return j.dump();
  } catch (const json::exception&) {
    fail(op, ": texts must be valid UTF-8");
  }
}

class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_64bits_reset(state_); }
  ~Hasher() { XXH3_freeState(state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void add(const void* data, size_t bytes) { XXH3_64bits_update(state_, data, bytes); }
  // With its length, so that two texts cannot be cut elsewhere and hash alike.
  void add(std::string_view text) {
    const uint64_t length = text.size();
    add(&length, sizeof length);
    add(text.data(), text.size());
  }
  std::string hex() const {
    static constexpr char kDigits[] = "0123456789abcdef";
    uint64_t h = XXH3_64bits_digest(state_);
    std::string out(16, '0');
    for (size_t i = 16; i-- > 0; h >>= 4) out[i] = kDigits[h & 15];
    return out;
  }

 private:
  XXH3_state_t* state_;
};

std::string checksum(const std::map<std::string, Tensor>& tensors, std::string_view text) {
  Hasher hasher;
  hasher.add(text);
  for (const auto& [name, tensor] : tensors) {
    hasher.add(name);
    hasher.add(cat(tensor.dtype(), tensor.shape()));
    const Tensor values = raw::contiguous(raw::to(tensor, tensor.dtype(), kCPU));
    hasher.add(values.raw_data(), static_cast<size_t>(values.nbytes()));
  }
  return hasher.hex();
}

std::string sections_text(const Checkpoint& c) {
  json j = {{"epoch", c.epoch},
            {"global_step", c.global_step},
            {"version", c.version},
            {"weights_only", c.weights_only}};
  for_each_state(c, [&](const char* name, const State& state) { j[name] = to_json(state); });
  j["callbacks"] = json::object();
  for (const auto& [key, state] : c.callbacks) j["callbacks"][key] = to_json(state);
  for (const Checkpoint::Own& own : c.other_ranks)
    j["other_ranks"].push_back({{"metrics", to_json(own.metrics)}, {"rng", to_json(own.rng)}});
  return dump(j, "save_checkpoint");
}

void read_sections(const std::string& text, Checkpoint& c) {
  const json j = json::parse(text);
  c.epoch = j.at("epoch").get<int64_t>();
  c.global_step = j.at("global_step").get<int64_t>();
  c.version = j.at("version").get<std::string>();
  c.weights_only = j.at("weights_only").get<bool>();
  for_each_state(c, [&](const char* name, State& state) {
    if (&state == &c.precision && !j.contains(name)) return;  // a file from before that section
    state = state_from(j.at(name));
  });
  for (const auto& [key, state] : j.at("callbacks").items()) c.callbacks[key] = state_from(state);
  if (!j.contains("other_ranks")) return;
  for (const json& own : j.at("other_ranks"))
    c.other_ranks.push_back({state_from(own.at("metrics")), state_from(own.at("rng")), {}});
}

// The file's metadata, checked to be of a checkpoint this build can read.
const std::string& field(const std::map<std::string, std::string>& metadata,
                         const std::string& path, const char* key) {
  const auto it = metadata.find(key);
  check(it != metadata.end(), "load_checkpoint: '", path,
        "' must be a checkpoint of Cairn, got a file "
        "without '",
        key, "'");
  return it->second;
}

void check_version(const std::map<std::string, std::string>& metadata, const std::string& path) {
  const std::string& format = field(metadata, path, "format");
  check(format == kFormat, "load_checkpoint: '", path, "' must have format ", kFormat, ", got '",
        format.substr(0, 40), "'");
  const std::string& text = field(metadata, path, "format_version");
  check(!text.empty() && text.size() < 10 &&
            text.find_first_not_of("0123456789") == std::string::npos,
        "load_checkpoint: '", path, "' must have a format version that is a number, got '",
        text.substr(0, 40), "'");
  const int64_t version = std::stoll(text);
  check(version <= kCheckpointVersion, "load_checkpoint: '", path, "' must have format version ",
        kCheckpointVersion, " or lower, got ", version, "; a newer Cairn wrote it");
}

}  // namespace

std::string text_of(const State& state) { return dump(to_json(state), "state"); }

State state_of(const std::string& text) {
  try {
    return state_from(json::parse(text));
  } catch (const json::exception& e) {
    fail("state: text must be that of a state, got: ", e.what());
  }
}

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) {
  std::map<std::string, Tensor> tensors;
  for_each_tensors(checkpoint, [&](const std::string& section, const Checkpoint::Tensors& values) {
    for (const auto& [name, tensor] : values) tensors[cat(section, ".", name)] = tensor;
  });
  const std::string text = sections_text(checkpoint);
  save_safetensors(path, tensors,
                   {{"format", kFormat},
                    {"format_version", std::to_string(kCheckpointVersion)},
                    {"checksum", checksum(tensors, text)},
                    {"checkpoint", text}});
}

Checkpoint load_checkpoint(const std::string& path) {
  std::map<std::string, std::string> metadata;
  const auto tensors = load_safetensors(path, &metadata);
  check_version(metadata, path);
  const std::string& text = field(metadata, path, "checkpoint");
  const std::string& expected = field(metadata, path, "checksum");
  const std::string found = checksum(tensors, text);
  check(found == expected, "load_checkpoint: '", path, "' must have checksum ",
        expected.substr(0, 40), ", got ", found, "; the file is corrupt");

  Checkpoint c;
  try {
    read_sections(text, c);
  } catch (const json::exception& e) {
    fail("load_checkpoint: '", path, "' must hold the sections of a checkpoint, got: ", e.what());
  }
  for_each_tensors(c, [&](const std::string& section, Checkpoint::Tensors& values) {
    const std::string prefix = cat(section, ".");
    for (auto it = tensors.lower_bound(prefix);
         it != tensors.end() && it->first.starts_with(prefix); ++it)
      values[it->first.substr(prefix.size())] = it->second;
  });
  return c;
}

void load_weights(nn::Module& model, const Checkpoint& checkpoint, const std::string& path) {
  try {
    model.load_state_dict(nn::StateDict(checkpoint.state_dict));
  } catch (const Error& e) {
    fail("load_checkpoint: '", path, "' must fit the model; ", e.what());
  }
}

}  // namespace cairn::trainer
