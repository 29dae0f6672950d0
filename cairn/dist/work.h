// Work: a collective that was asked for and may not be done yet.
#pragma once

#include <memory>
#include <utility>

namespace cairn::dist {

// What a backend keeps of a call; wait() may be called several times and by several threads.
struct WorkState {
  virtual ~WorkState() = default;
  // Whether it has ended, well or not.
  virtual bool is_completed() = 0;
  // Returns when its results may be used (on a GPU: by what is issued to the stream from now on);
  // throws what made it fail.
  virtual void wait() = 0;
};

// A handle. Letting go of it does not stop the work, and the tensors stay alive until it is done.
class Work {
 public:
  // Done.
  Work() = default;
  explicit Work(std::shared_ptr<WorkState> state) : state_(std::move(state)) {}

  bool is_completed() const { return state_ == nullptr || state_->is_completed(); }
  void wait() const {
    if (state_ != nullptr) state_->wait();
  }

 private:
  std::shared_ptr<WorkState> state_;
};

}  // namespace cairn::dist
