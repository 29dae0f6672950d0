// NcclGroup: calls on a stream of the group, watched by a thread.
// Invariant: every call that was issued outside of a capture, and every launch that watch() was
// told of, is watched until the GPU has done it or the group is broken; of a broken group no call
// reaches NCCL, and its watchdog aborts the communicator.
#include <condition_variable>
#include <deque>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

#include "cairn/dist/cuda/nccl_comm.h"
#include "cairn/dist/diagnosis.h"
#include "cairn/dist/nccl.h"
#include "cairn/dist/owner.h"
#include "cairn/tensor/cuda/graph.h"
#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/factory.h"

namespace cairn::dist::cuda {
namespace {

using cairn::cuda::current_stream;
using cairn::cuda::DeviceGuard;
using cairn::cuda::make_event;
using cairn::cuda::OwnedEvent;
using cairn::cuda::OwnedStream;

// How often the watchdog looks while something runs, and what a closing group waits for others.
constexpr Milliseconds kLook(20);
constexpr Milliseconds kClose(5000);
// How often a group that waits on the GPU asks whether another rank broke it, and what it waits for
// an answer or for its own word to arrive.
constexpr Milliseconds kAsk(1000), kAnswer(1000);

// A kernel of NCCL may begin before its peers are there, so the time of a call counts from its
// beginning on this GPU, not from when the host asked.
struct Flight {
  Call call;
  uint64_t ticket = 0;
  std::string launch;      // of a graph, and not a call: its name
  bool launching = false;  // `ended` is not recorded yet
  OwnedEvent ready, begun, ended;
  std::optional<Deadline> deadline;  // since it begun
};
constexpr uint64_t kNoTicket = ~uint64_t{0};

std::string name_of(const Flight& flight) {
  return flight.launch.empty() ? describe(flight.call) : flight.launch;
}

// What calls, works and the watchdog share.
struct Shared {
  Device device;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::shared_ptr<Flight>> flights;  // in order of issue
  std::vector<std::shared_ptr<Flight>> idle;    // for reuse
  std::exception_ptr broken;
  std::optional<Deadline> closing;  // until when the last calls may go on
};

bool reached(const OwnedEvent& event) {
  const cudaError_t state = cudaEventQuery(event.get());
  if (state == cudaErrorNotReady) static_cast<void>(cudaGetLastError());
  return state != cudaErrorNotReady;
}

struct NcclWork : WorkState {
  NcclWork(std::shared_ptr<Shared> of, std::shared_ptr<Flight> what, bool on_host, bool in_graph)
      : shared(std::move(of)), flight(std::move(what)), blocks(on_host), captured(in_graph) {}

  bool is_completed() override {
    if (captured || reached(flight->ended)) return true;
    const std::lock_guard lock(shared->mutex);
    return shared->broken != nullptr;
  }
  void wait() override {
    const DeviceGuard guard(shared->device);
    // The watchdog ends it in time, by an abort.
    if (blocks) cairn::cuda::wait_for(shared->device, flight->ended.get());
    throw_if_broken();
    CAIRN_CUDA(cudaStreamWaitEvent, current_stream(shared->device), flight->ended.get(), 0u);
  }
  void throw_if_broken() const {
    const std::lock_guard lock(shared->mutex);
    if (shared->broken) std::rethrow_exception(shared->broken);
  }

  std::shared_ptr<Shared> shared;
  std::shared_ptr<Flight> flight;  // its events are reused only when nobody holds it
  bool blocks, captured;
};

std::string host_and_gpu(Device device) {
  std::string boot = "unknown";
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  char bus[32] = "";
  CAIRN_CUDA(cudaDeviceGetPCIBusId, bus, static_cast<int>(sizeof bus), device.index);
  return cat(boot, " ", bus);
}

class NcclGroup final : public ProcessGroup {
 public:
  NcclGroup(GroupOptions given, Device device)
      : ProcessGroup(std::move(given)),
        api_(*nccl_api()),
        shared_(std::make_shared<Shared>()),
        diagnosis_(options()) {
    for (int r = 0; r < size(); ++r)
      if (r != rank()) others_.push_back(r);
    cairn::cuda::check_device(device, "nccl");
    shared_->device = device;
    const DeviceGuard guard(device);
    const Deadline deadline(timeout());
    if (size() > 1) meet(deadline);
    stream_ = cairn::cuda::make_stream();
    scratch_ = zeros({1}, {DType::i32, device});
    comm_ = std::make_unique<NcclComm>(api_, share_id(deadline), rank(), size(), deadline);
    watchdog_ = std::thread([this] { watch(); });
  }

  ~NcclGroup() override {
    {
      std::unique_lock lock(shared_->mutex);
      shared_->closing.emplace(timeout());
      shared_->changed.notify_all();
    }
    watchdog_.join();  // after the last call ended or failed
    if (!shared_->broken) diagnosis_.left(issued_);
    comm_->close(Deadline(kClose));
  }

  std::string_view backend() const override { return "nccl"; }
  Device device() const override { return shared_->device; }
  bool captures() const override { return true; }

  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks,
                                         const std::string& name) override {
    const std::optional<GroupOptions> sub = sub_options(ranks, name);
    return sub ? make_owned<NcclGroup>(*sub, shared_->device) : nullptr;
  }

  void watch(const std::string& what, Milliseconds timeout,
             const std::function<void()>& launch) override {
    check_process();
    const DeviceGuard guard(shared_->device);
    const cudaStream_t stream = current_stream(shared_->device);
    std::unique_lock lock(shared_->mutex);
    if (shared_->broken) std::rethrow_exception(shared_->broken);
    const std::shared_ptr<Flight> flight = take_flight();
    flight->ticket = kNoTicket;
    flight->launch = what;
    flight->call.timeout = timeout;
    flight->launching = true;
    CAIRN_CUDA(cudaEventRecord, flight->begun.get(), stream);
    add(flight);
    // Without the lock: a launch may wait for room behind others, which only the watchdog can end.
    lock.unlock();
    try {
      launch();
      CAIRN_CUDA(cudaEventRecord, flight->ended.get(), stream);
    } catch (...) {
      lock.lock();
      std::erase(shared_->flights, flight);
      throw;
    }
    lock.lock();
    flight->launching = false;
  }

  void abort(const std::string& why) noexcept override {
    if (size() == 1 || !in_its_process()) return;
    const std::lock_guard lock(shared_->mutex);
    const std::string text =
        cat("group '", name(), "': rank ", rank(), " of ", size(), " gave it up: ", why);
    break_with(kNoTicket, std::make_exception_ptr(CommError(text)));
  }

 private:
  std::string key(std::string_view what) const { return cat(name(), "/nccl/", what); }

  // Two ranks on one GPU would wait for each other's kernels for ever.
  void meet(const Deadline& deadline) {
    Store& store = *options().store;
    store.set(key(cat("gpu/", rank())), host_and_gpu(shared_->device));
    store.barrier(key("meet"), rank(), size(), deadline.remaining());
    std::vector<std::string> gpus;
    for (int r = 0; r < size(); ++r)
      gpus.push_back(store.get(key(cat("gpu/", r)), deadline.remaining()));
    for (int r = 0; r < size(); ++r)
      for (int other = r + 1; other < size(); ++other)
        check(gpus[static_cast<size_t>(r)] != gpus[static_cast<size_t>(other)],
              "nccl: every rank must have a GPU of its own, got the same one for ranks ", r,
              " and ", other);
  }

  ncclUniqueId share_id(const Deadline& deadline) {
    ncclUniqueId id{};
    if (rank() == 0) {
      const ncclResult_t made = api_.unique_id(&id);
      if (made != ncclSuccess)
        throw CommError(nccl_failure(api_, "ncclGetUniqueId", made, nullptr));
      if (size() > 1) options().store->set(key("id"), std::string(id.internal, sizeof id.internal));
      return id;
    }
    const std::string got = options().store->get(key("id"), deadline.remaining());
    check(got.size() == sizeof id.internal, "nccl: the communicator's id must have ",
          sizeof id.internal, " bytes, got ", got.size());
    std::copy(got.begin(), got.end(), id.internal);
    return id;
  }

  Work submit(Call call, bool) override {
    const Device device = shared_->device;
    const bool captured = cairn::cuda::capturing(device);
    const bool barrier = call.is.kind == CallKind::barrier;
    if (barrier) cairn::cuda::refuse_in_capture(device, "barrier", "wait for other processes");
    const DeviceGuard guard(device);

    std::unique_lock lock(shared_->mutex);
    if (shared_->broken) std::rethrow_exception(shared_->broken);
    std::shared_ptr<Flight> flight = take_flight();
    // Captured calls are numbered apart: a capture that fails on one rank must not shift the
    // numbers by which calls are compared.
    call.is.sequence = captured ? captured_++ : issued_++;
    flight->ticket = recorder_.asked(call);
    flight->launch.clear();
    flight->call = std::move(call);
    // The stream of the group comes after what the caller's was given, also in a capture, which
    // it joins by this.
    CAIRN_CUDA(cudaEventRecord, flight->ready.get(), current_stream(device));
    CAIRN_CUDA(cudaStreamWaitEvent, stream_.get(), flight->ready.get(), 0u);
    CAIRN_CUDA(cudaEventRecord, flight->begun.get(), stream_.get());
    try {
      comm_->issue(flight->call, scratch_.raw_data(), stream_.get());
    } catch (const TimeoutError&) {
      break_with(flight->ticket, std::current_exception());
      throw;
    } catch (const CommError& error) {
      break_with(flight->ticket, lost(describe(flight->call), error.what()));
      std::rethrow_exception(shared_->broken);
    }
    CAIRN_CUDA(cudaEventRecord, flight->ended.get(), stream_.get());
    if (captured) {
      recorder_.ended(flight->ticket, true);  // that it was recorded is all there is to tell
      flight->call.input = flight->call.output = {};
    } else {
      add(flight);
    }
    return Work(std::make_shared<NcclWork>(shared_, std::move(flight), barrier, captured));
  }

  // With the lock held.
  void add(std::shared_ptr<Flight> flight) {
    shared_->flights.push_back(std::move(flight));
    shared_->changed.notify_all();
  }

  std::shared_ptr<Flight> take_flight() {
    for (std::shared_ptr<Flight>& old : shared_->idle)
      if (old.use_count() == 1) {
        std::swap(old, shared_->idle.back());
        std::shared_ptr<Flight> flight = std::move(shared_->idle.back());
        shared_->idle.pop_back();
        flight->deadline.reset();
        return flight;
      }
    auto flight = std::make_shared<Flight>();
    flight->ready = make_event();
    flight->begun = make_event();
    flight->ended = make_event();
    return flight;
  }

  std::exception_ptr lost(std::string_view doing, std::string_view why) const {
    return std::make_exception_ptr(
        CommError(cat(doing, ": rank ", rank(), " of ", size(), " lost the communicator: ", why)));
  }

  // With the lock held. What broke it first stays.
  void break_with(uint64_t ticket, std::exception_ptr error) {
    recorder_.ended(ticket, false);
    if (!shared_->broken) shared_->broken = std::move(error);
    note_failure();
    shared_->changed.notify_all();
  }

  void watch() {
    const DeviceGuard guard(shared_->device);
    std::unique_lock lock(shared_->mutex);
    for (;;) {
      const bool idle = shared_->flights.empty();
      if (shared_->broken || (shared_->closing && shared_->closing->expired())) {
        // Without the lock: it returns when the graphs with calls of the group are gone, and those
        // who hold them must hear of the failure for that.
        lock.unlock();
        if (shared_->broken) tell_others();
        return comm_->end();
      }
      if (shared_->closing && idle) return;
      // An idle communicator is asked now and then too: its graphs run without a word to us.
      shared_->changed.wait_for(lock, idle ? 10 * kLook : kLook, [&] {
        return shared_->broken || (shared_->closing && shared_->flights.empty());
      });
      if (!shared_->broken) look();
      if (!shared_->broken) take_word_back(lock);
      if (!shared_->broken && !shared_->flights.empty()) ask_others(lock);
    }
  }

  // The first failure of any rank, in words, for ranks whose GPU waits for that one.
  void tell_others() const {
    if (size() == 1) return;
    try {
      std::rethrow_exception(shared_->broken);
    } catch (const std::exception& error) {
      try {
        Store& store = *options().store;
        if (!store.find(key("broken"), kAnswer)) store.set(key("broken"), error.what(), kAnswer);
      } catch (const std::exception&) {  // then their time-outs tell them
      }
    }
  }

  // What the store knows of why the first call or launch waits. Gives the lock back meanwhile.
  void ask_others(std::unique_lock<std::mutex>& lock) {
    const std::shared_ptr<Flight> first = shared_->flights.front();
    const bool late = first->deadline && first->deadline->expired();
    if (!first->deadline || (!late && (size() == 1 || !next_question_.expired()))) return;
    next_question_ = Deadline(kAsk);
    const bool waits = std::exchange(asked_about_, first->ticket) == first->ticket;
    Call call = first->call;
    call.input = call.output = {};
    lock.unlock();
    const std::exception_ptr error = why_it_waits(*first, call, waits, late);
    lock.lock();
    const bool done = !first->launching && reached(first->ended);  // after all
    if (error && !done && !shared_->broken) break_with(first->ticket, error);
  }

  // A word of a call that is done would pass for one of a rank that waits.
  void take_word_back(std::unique_lock<std::mutex>& lock) {
    const bool waits = !shared_->flights.empty() && shared_->flights.front()->ticket == told_of_;
    if (told_of_ == kNoTicket || waits) return;
    told_of_ = kNoTicket;
    lock.unlock();
    diagnosis_.waits_no_more();
    lock.lock();
  }

  std::vector<int> peers_of(const Call& call) const {
    return is_collective(call.is.kind) ? others_ : std::vector<int>{call.peer};
  }

  // Null: nobody says, and it is not late.
  std::exception_ptr why_it_waits(const Flight& flight, const Call& call, bool waits, bool late) {
    const bool alone = size() == 1, is_call = flight.launch.empty();
    if (!alone) {
      try {
        if (const auto word = options().store->find(key("broken"), kAnswer))
          return lost(name_of(flight), *word);
      } catch (const std::exception&) {  // a store that is gone is no failure of the GPUs
      }
    }
    if (!late) {
      if (!is_call || !waits) return nullptr;
      told_of_ = flight.ticket;
      const auto reason = diagnosis_.reason(call);
      return reason ? std::make_exception_ptr(CommError(*reason)) : nullptr;
    }
    const std::string text =
        is_call && !alone ? diagnosis_.silent(call, peers_of(call))
                          : cat(name_of(flight), ": rank ", rank(), " of ", size(),
                                " must be done within ", call.timeout.count(),
                                " ms, but the GPU still waits", alone ? "" : " for other ranks");
    return std::make_exception_ptr(
        TimeoutError(cat(text, "\nThe last collectives of rank ", rank(), " in the group '", name(),
                         "':\n", recorder_.table())));
  }

  void look() {
    while (!shared_->flights.empty()) {
      Flight& first = *shared_->flights.front();
      if (!first.deadline && reached(first.begun)) {
        recorder_.started(first.ticket);
        first.deadline.emplace(first.call.timeout);
      }
      if (!first.deadline || first.launching || !reached(first.ended)) break;
      recorder_.ended(first.ticket, true);
      first.call.input = first.call.output = {};
      shared_->idle.push_back(std::move(shared_->flights.front()));
      shared_->flights.pop_front();
    }
    const std::string failure = comm_->failure();
    Flight* const first = shared_->flights.empty() ? nullptr : shared_->flights.front().get();
    const std::string doing = first != nullptr ? name_of(*first) : cat("group '", name(), "'");
    if (!failure.empty())
      break_with(first != nullptr ? first->ticket : kNoTicket, lost(doing, failure));
  }

  const NcclApi& api_;
  std::shared_ptr<Shared> shared_;
  OwnedStream stream_;
  Tensor scratch_;
  std::unique_ptr<NcclComm> comm_;
  Diagnosis diagnosis_;                 // the watchdog's, and then the destructor's
  std::vector<int> others_;             // ranks
  Deadline next_question_{kAsk};        // the watchdog's
  uint64_t issued_ = 0, captured_ = 0;  // calls
  uint64_t asked_about_ = kNoTicket, told_of_ = kNoTicket;  // the watchdog's, calls by ticket
  std::thread watchdog_;
};

std::shared_ptr<ProcessGroup> make(GroupOptions options, Device device) {
  return make_owned<NcclGroup>(std::move(options), device);
}

constexpr detail::NcclBackend kBackend{make, why_no_nccl};

}  // namespace

void fill_nccl() { detail::set_nccl_backend(&kBackend); }

}  // namespace cairn::dist::cuda
