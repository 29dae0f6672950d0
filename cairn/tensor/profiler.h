// Profiler: where time goes, by kernel and by named range, as a table and as a Chrome trace.
// Invariant: off, a range costs one relaxed load and a branch. On, every range that closes counts
// in the table exactly once; only the trace is capped, and it says how much it left out.
//
//   profiler::Profile profile;                 // records all threads from here on
//   { const profiler::Range range("evaluate"); … }
//   profile.stop();
//   std::cout << profile.table();
//   profile.write_chrome_trace("trace.json");  // for chrome://tracing and Perfetto
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn::profiler {

namespace detail {
inline constinit std::atomic<bool> recording{false};
class Recorder;
class Session;
}  // namespace detail

// Whether a Profile records now.
inline bool recording() { return detail::recording.load(std::memory_order_relaxed); }

// kernel: a call of a slot, or a copy or fill; backward: the rule of one op; range: anything named.
enum class Kind : uint8_t { range, kernel, backward };

// What one kernel call works on: the tensors' shapes, their bytes and the arithmetic.
class Work {
 public:
  // Counts the tensor's bytes and notes its dtype and shape; nothing for an undefined one.
  // `add` marks one that is added to.
  void tensor(const Tensor& t, bool add = false);

  int64_t bytes = 0;
  int64_t flops = 0;  // a multiply-add counts as two; 0: not counted

 private:
  friend class detail::Recorder;
  static constexpr size_t kMaxWords = 64;  // 12 tensors of 4 dimensions; shapes beyond are left off
  std::array<int64_t, kMaxWords> words_;   // per tensor: a header, then its sizes
  size_t count_ = 0;
};

// What an argument of a kernel adds to the work; types of other folders overload this beside
// themselves.
template <class T>
void note(Work&, const T&) {}
inline void note(Work& work, const Tensor& t) { work.tensor(t); }

// Times a scope. Ranges nest, on every thread by itself. `name` is copied.
class Range {
 public:
  explicit Range(std::string_view name, Kind kind = Kind::range) {
    if (recording()) [[unlikely]]
      open(name, kind, {});
  }
  Range(std::string_view name, const Work& work) { open(name, Kind::kernel, work); }
  ~Range() {
    if (recorder_) [[unlikely]]
      close();
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  template <class... Args>
  friend Range kernel_range(std::string_view name, const Args&... args);
  Range() = default;
  void open(std::string_view name, Kind kind, const Work& work);
  void close() noexcept;

  std::shared_ptr<detail::Recorder> recorder_;  // null: nothing is recorded
  size_t depth_ = 0;
};

// The range of a kernel with these arguments.
template <class... Args>
Range kernel_range(std::string_view name, const Args&... args) {
  if (!recording()) return Range();
  Work work;
  (note(work, args), ...);
  return Range(name, work);
}

struct ProfileOptions {
  // Ranges kept for the trace, of all threads together; 24 bytes each here, some 200 in the file.
  int64_t max_events = 1 << 18;
};

// One line of the table, summed over threads.
struct Row {
  std::string name;
  Kind kind = Kind::range;
  std::string shapes;  // "f32[8,64,7,7] +f32[64]", + for what is added to; empty unless asked for
  int64_t calls = 0;
  double total = 0;  // seconds, those of nested ranges included; a recursion counts once
  double self = 0;   // seconds outside of nested ranges
  int64_t bytes = 0;
  int64_t flops = 0;
};

struct TableOptions {
  std::string sort_by = "self";  // or total, calls, mean, bytes, flops, name
  bool by_shape = false;         // a line for each combination of shapes
  int64_t max_rows = 100;        // -1: all
};

// A recording of every thread, from construction to stop(). Ranges that are open at stop() do not
// count. Beyond 65536 combinations of name and shapes in a thread, shapes are no longer told apart.
class Profile {
 public:
  // Throws Error while another Profile records.
  explicit Profile(const ProfileOptions& options = {});
  ~Profile();  // stops
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  void stop();
  double seconds() const;  // from start to stop, or to now
  // Ranges in the trace, and those that max_events left out of it.
  int64_t events() const;
  int64_t dropped_events() const;

  // All rows, whatever max_rows says.
  std::vector<Row> rows(const TableOptions& options = {}) const;
  std::string table(const TableOptions& options = {}) const;
  // JSON with one complete event for each range. The file appears whole or not at all.
  void write_chrome_trace(const std::string& path) const;

 private:
  std::shared_ptr<detail::Session> session_;
};

}  // namespace cairn::profiler
