// Recording: a recorder per thread, which only its own thread fills and any thread may read.
// Invariant: a recorder's mutex guards all it holds, so a Profile may be read and stopped while
// other threads are inside ranges.
#include "cairn/tensor/profiler.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <unordered_map>

#include "cairn/tensor/profiler_recorder.h"

namespace cairn::profiler {
namespace detail {
namespace {

constexpr size_t kMaxSites = 1 << 16;
constexpr const char* kOtherNames = "(other names)";

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// The running session, if any. `generation` tells threads that theirs is an old one.
std::mutex running_mutex;
std::shared_ptr<Session> running;
std::atomic<uint64_t> generation{0};

}  // namespace

bool Limits::take() { return events.fetch_add(1, std::memory_order_relaxed) < max_events; }

size_t WordsHash::operator()(const std::vector<int64_t>& words) const {
  uint64_t hash = 0;
  for (const int64_t word : words) {
    hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

uint32_t Recorder::name_id(std::string_view name) {
  const auto found = name_ids_.find(name);
  if (found != name_ids_.end()) return found->second;
  if (names_.size() >= kMaxSites && name != kOtherNames) return name_id(kOtherNames);
  const auto id = static_cast<uint32_t>(names_.size());
  names_.emplace_back(name);
  name_ids_.emplace(name, id);
  return id;
}

uint32_t Recorder::site_of(std::string_view name, Kind kind, const Work& work) {
  const uint32_t id = name_id(name);
  const bool whole = sites_.size() < kMaxSites;
  key_.assign({static_cast<int64_t>(id) << 2 | static_cast<int64_t>(kind), whole ? work.bytes : -1,
               whole ? work.flops : -1});
  if (whole) key_.insert(key_.end(), work.words_.begin(), work.words_.begin() + work.count_);
  const auto found = site_ids_.find(key_);
  if (found != site_ids_.end()) return found->second;
  const auto site = static_cast<uint32_t>(sites_.size());
  sites_.push_back({.name = id, .kind = kind, .words = {key_.begin() + 3, key_.end()}});
  site_ids_.emplace(key_, site);
  return site;
}

size_t Recorder::open(std::string_view name, Kind kind, const Work& work) {
  const std::lock_guard lock(mutex_);
  const uint32_t site = site_of(name, kind, work);
  const auto same_name = [&](const Frame& f) {
    return sites_[f.site].name == sites_[site].name && sites_[f.site].kind == kind;
  };
  const bool recursive = std::any_of(frames_.begin(), frames_.end(), same_name);
  frames_.push_back({site, recursive, work.bytes, work.flops, 0, 0});
  frames_.back().start = now();  // last, so that what was done here is not the range's time
  return frames_.size() - 1;
}

void Recorder::close(size_t depth) {
  const int64_t end = now();
  const std::lock_guard lock(mutex_);
  if (depth >= frames_.size()) return;  // a range around it closed first
  const Frame frame = frames_[depth];
  frames_.resize(depth);
  if (limits_->stopped.load(std::memory_order_relaxed)) return;
  const int64_t duration = end - frame.start;
  if (depth > 0) frames_.back().nested += duration;
  Site& site = sites_[frame.site];
  ++site.calls;
  site.self += duration - frame.nested;
  if (!frame.recursive) site.total += duration;
  site.bytes += frame.bytes;
  site.flops += frame.flops;
  if (limits_->take()) events_.push_back({frame.start, duration, frame.site});
}

std::shared_ptr<Recorder> current_recorder() {
  thread_local uint64_t seen = 0;
  thread_local std::weak_ptr<Recorder> own;
  if (seen == generation.load(std::memory_order_acquire))
    if (auto recorder = own.lock()) return recorder;
  const std::lock_guard lock(running_mutex);
  if (!running) return nullptr;
  seen = generation.load(std::memory_order_relaxed);
  auto recorder = std::make_shared<Recorder>(running->limits());
  running->add(recorder);
  own = recorder;
  return recorder;
}

Session::Session(int64_t max_events) : limits_(std::make_shared<Limits>()), start_(now()) {
  limits_->max_events = max_events;
}

void Session::add(std::shared_ptr<Recorder> recorder) {
  const std::lock_guard lock(mutex_);
  recorders_.push_back(std::move(recorder));
}

std::vector<std::shared_ptr<Recorder>> Session::recorders() const {
  const std::lock_guard lock(mutex_);
  return recorders_;
}

int64_t Session::nanoseconds() const {
  const int64_t end = end_.load();
  return (end == 0 ? now() : end) - start_;
}

void Session::start(const std::shared_ptr<Session>& session) {
  const std::lock_guard lock(running_mutex);
  check(!running, "profiler: only one Profile may record at a time, got a second");
  running = session;
  generation.fetch_add(1, std::memory_order_release);
  recording.store(true);
}

void Session::stop() {
  const std::lock_guard lock(running_mutex);
  if (running.get() != this) return;
  recording.store(false);
  limits_->stopped.store(true);
  end_.store(now());
  running.reset();
}

}  // namespace detail

void Work::tensor(const Tensor& t, bool add) {
  if (!t.defined()) return;
  bytes += t.nbytes();
  const size_t dims = t.shape().size();
  if (count_ + 1 + dims > kMaxWords) return;
  words_[count_++] = detail::header_word(t.dtype(), dims, add);
  for (const int64_t size : t.shape()) words_[count_++] = size;
}

void Range::open(std::string_view name, Kind kind, const Work& work) {
  auto recorder = detail::current_recorder();
  if (!recorder) return;  // stopped in this moment
  depth_ = recorder->open(name, kind, work);
  recorder_ = std::move(recorder);
}

void Range::close() noexcept {
  try {
    recorder_->close(depth_);
  } catch (const std::bad_alloc&) {
    // No memory for one more event: the trace lacks it.
  }
}

}  // namespace cairn::profiler
