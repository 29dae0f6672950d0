// CSVLogger: appends where it can, rewrites the file where a column is new.
#include "cairn/trainer/loggers/csv_logger.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>

#include "cairn/tensor/file.h"

namespace cairn::trainer {
namespace {

namespace fs = std::filesystem;
constexpr const char* kOp = "CSVLogger";

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + '"';
}

// The cells of one line.
std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> cells(1);
  bool inside = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (inside && line[i] == '"' && i + 1 < line.size() && line[i + 1] == '"')
      cells.back() += line[++i];
    else if (line[i] == '"')
      inside = !inside;
    else if (line[i] == ',' && !inside)
      cells.emplace_back();
    else
      cells.back() += line[i];
  }
  return cells;
}

std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return cat(value);
}

int64_t next_version(const fs::path& folder) {
  int64_t next = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("version_")) continue;
    char* end = nullptr;
    const int64_t version = std::strtoll(name.c_str() + 8, &end, 10);
    if (*end == '\0') next = std::max(next, version + 1);
  }
  return next;
}

// Text as YAML reads it back: in double quotes, with JSON's escapes.
std::string yaml(const Value& value) {
  if (!value.is_text()) return value.to_text();
  std::string out = "\"";
  for (char c : value.as_text()) {
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (c == '\n')
      out += "\\n";
    else if (static_cast<unsigned char>(c) < 0x20)
      out += ' ';
    else
      out += c;
  }
  return out + '"';
}

}  // namespace

CSVLogger::CSVLogger(CSVLoggerOptions options) : options_(std::move(options)) {
  check(options_.flush_logs_every_n_steps >= 1, kOp,
        ": flush_logs_every_n_steps must be at least 1, got ", options_.flush_logs_every_n_steps);
  check(options_.version.value_or(0) >= 0, kOp, ": version must be at least 0, got ",
        options_.version.value_or(0));
}

std::string CSVLogger::log_dir() const {
  if (dir_.empty()) {
    const fs::path folder = fs::path(options_.save_dir) / options_.name;
    dir_ = !options_.dir.empty()
               ? options_.dir
               : (folder /
                  cat("version_", options_.version ? *options_.version : next_version(folder)))
                     .string();
  }
  return dir_;
}

void CSVLogger::make_folder() const {
  std::error_code error;
  fs::create_directories(log_dir(), error);
  check(!error && fs::is_directory(log_dir(), error), kOp, ": '", log_dir(),
        "' must be a folder that can be made",
        error ? cat(", got ", error.message()) : std::string(", got a file"));
}

void CSVLogger::log_hyperparams(const State& hyper_parameters) {
  make_folder();
  std::string text = hyper_parameters.empty() ? "{}\n" : "";
  for (const auto& [key, value] : hyper_parameters) text += cat(yaml(key), ": ", yaml(value), "\n");
  AtomicFile file(log_dir() + "/hparams.yaml", kOp);
  file.write(text);
  file.commit();
  if (!started_) rewrite();  // an earlier run's table goes now, not at the first row
}

void CSVLogger::log_metrics(const Metrics& metrics, int64_t step) {
  for (const auto& [name, value] : metrics) {
    if (name == "epoch" || std::find(columns_.begin(), columns_.end(), name) != columns_.end())
      continue;
    columns_.push_back(name);
    new_columns_ = true;
  }
  if (static_cast<int64_t>(rows_.size()) >= options_.flush_logs_every_n_steps) save();
  rows_.push_back({step, metrics});
}

std::string CSVLogger::header() const {
  std::string out = "epoch,step";
  for (const auto& name : columns_) out += cat(",", quoted(name));
  return out + '\n';
}

std::string CSVLogger::line(const Row& row) const {
  const auto cell = [&](const std::string& name) {
    const auto it = row.metrics.find(name);
    return it == row.metrics.end() ? std::string() : number(it->second);
  };
  std::string out = cat(cell("epoch"), ",", row.step);
  for (const auto& name : columns_) out += cat(",", cell(name));
  return out + '\n';
}

void CSVLogger::read_rows(int64_t count) {
  std::error_code error;
  if (!fs::exists(metrics_path(), error)) return;
  const ReadFile file(metrics_path(), kOp);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(text.data(), file.size(), 0);
  std::vector<std::string> names;
  std::vector<Row> rows;
  for (size_t at = 0; at < text.size();) {
    const size_t stop = std::min(text.find('\n', at), text.size());
    const std::vector<std::string> cells = split(text.substr(at, stop - at));
    at = stop + 1;
    if (names.empty()) {
      check(cells.size() >= 2 && cells[0] == "epoch" && cells[1] == "step", kOp, ": '",
            metrics_path(), "' must start with epoch,step to be continued");
      names = cells;
      continue;
    }
    if (cells.size() < 2 || cells.size() > names.size()) continue;  // cut off by a crash
    Row row{.step = std::strtoll(cells[1].c_str(), nullptr, 10), .metrics = {}};
    if (static_cast<int64_t>(rows.size()) >= count) break;
    for (size_t i = 0; i < cells.size(); ++i)
      if (i != 1 && !cells[i].empty())
        row.metrics[names[i]] = std::strtod(cells[i].c_str(), nullptr);
    rows.push_back(std::move(row));
  }
  if (names.size() >= 2) columns_.assign(names.begin() + 2, names.end());
  for (Row& row : rows_) rows.push_back(std::move(row));
  rows_ = std::move(rows);
}

State CSVLogger::state_dict() const {
  return {{"rows", written_ + static_cast<int64_t>(rows_.size())}};
}

void CSVLogger::resume(const State& state) {
  rows_.clear();
  columns_.clear();
  read_rows(require(state, "rows", kOp).as_int());
  rewrite();
}

void CSVLogger::rewrite() {
  make_folder();
  AtomicFile file(metrics_path(), kOp);
  file.write(header());
  for (const Row& row : rows_) file.write(line(row));
  file.commit();
  written_ = static_cast<int64_t>(rows_.size());
  rows_.clear();
  started_ = true;
  new_columns_ = false;
}

void CSVLogger::append() {
  std::string text;
  for (const Row& row : rows_) text += line(row);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(
      std::fopen(metrics_path().c_str(), "a"), &std::fclose);
  check(file != nullptr && std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
            std::fflush(file.get()) == 0,
        kOp, ": '", metrics_path(), "' must be writable, got: ", std::strerror(errno));
  written_ += static_cast<int64_t>(rows_.size());
  rows_.clear();
}

void CSVLogger::save() {
  if (rows_.empty()) return;
  if (started_ && !new_columns_) {
    append();
    return;
  }
  if (started_) {
    std::vector<std::string> columns = std::move(columns_);
    read_rows(written_);
    columns_ = std::move(columns);
  }
  rewrite();
}

void CSVLogger::finalize(std::string_view) { save(); }

}  // namespace cairn::trainer
