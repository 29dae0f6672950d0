// One small text file a plan:
//   cairn plan 1
//   KEY
//   engine N
//   knob TYPE VALUE   (any number)
//   sum HASH          (of everything above)
#include "cairn/kernels/cuda/dnn_plan_store.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <system_error>

#include "cairn/tensor/error.h"

namespace cairn::kernels::cuda {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTitle = "cairn plan 1\n";

// FNV-1a: files get short names of their own, and damage shows.
std::string hash_of(std::string_view text) {
  uint64_t hash = 14695981039346656037u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  char out[17];
  std::snprintf(out, sizeof out, "%016llx", static_cast<unsigned long long>(hash));
  return out;
}

std::string text_of(std::string_view key, const PlanChoice& choice) {
  std::string text = cat(kTitle, key, "\nengine ", choice.engine, "\n");
  for (const auto& [type, value] : choice.knobs) text += cat("knob ", type, " ", value, "\n");
  return text + cat("sum ", hash_of(text), "\n");
}

bool take(std::string_view* text, std::string_view start) {
  if (!text->starts_with(start)) return false;
  text->remove_prefix(start.size());
  return true;
}
bool take_number(std::string_view* text, char end, int64_t* out) {
  const auto [at, error] = std::from_chars(text->data(), text->data() + text->size(), *out);
  if (error != std::errc() || at == text->data() + text->size() || *at != end) return false;
  text->remove_prefix(static_cast<size_t>(at - text->data()) + 1);
  return true;
}

std::optional<PlanChoice> parse(std::string_view text, std::string_view key) {
  PlanChoice choice;
  const size_t sum = text.rfind("sum ");
  if (sum == std::string_view::npos ||
      text.substr(sum) != cat("sum ", hash_of(text.substr(0, sum)), "\n"))
    return std::nullopt;
  if (!take(&text, kTitle) || !take(&text, key) || !take(&text, "\nengine ") ||
      !take_number(&text, '\n', &choice.engine))
    return std::nullopt;
  while (take(&text, "knob ")) {
    auto& [type, value] = choice.knobs.emplace_back();
    if (!take_number(&text, ' ', &type) || !take_number(&text, '\n', &value)) return std::nullopt;
  }
  return choice;
}

}  // namespace

PlanStore PlanStore::of_user() {
  const auto variable = [](const char* name) {
    const char* const value = std::getenv(name);
    return value == nullptr ? fs::path() : fs::path(value);
  };
  const fs::path cache = variable("XDG_CACHE_HOME"), home = variable("HOME");
  // Relative ones are to be ignored (XDG Base Directory Specification).
  if (cache.is_absolute()) return PlanStore(cache / "cairn" / "plans");
  if (home.is_absolute()) return PlanStore(home / ".cache" / "cairn" / "plans");
  return PlanStore(fs::path());
}

fs::path PlanStore::file_of(std::string_view key) const {
  return folder_ / (hash_of(key) + ".plan");
}

std::optional<PlanChoice> PlanStore::load(std::string_view key) const {
  if (folder_.empty()) return std::nullopt;
  std::ifstream file(file_of(key), std::ios::binary);
  if (!file) return std::nullopt;
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return parse(text, key);
}

void PlanStore::save(std::string_view key, const PlanChoice& choice) const {
  if (folder_.empty()) return;
  std::error_code error;
  fs::create_directories(folder_, error);
  const fs::path place = file_of(key);
  fs::path fresh = place;
  fresh += cat(".", getpid());
  {
    std::ofstream file(fresh, std::ios::binary | std::ios::trunc);
    file << text_of(key, choice);
    if (!file.flush()) error = std::make_error_code(std::errc::io_error);
  }
  if (!error) fs::rename(fresh, place, error);
  if (error) fs::remove(fresh, error);
}

}  // namespace cairn::kernels::cuda
