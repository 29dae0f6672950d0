// Owner: the process that made an object. A child that it forks has a copy, whose threads are not
// there, whose locks may be held for ever, and whose connections are still the parent's.
// Invariant: a child never uses nor destroys its copy, so that the others notice nothing of it.
#pragma once

#include <unistd.h>

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "cairn/tensor/error.h"

namespace cairn::dist {

class Owner {
 public:
  bool here() const { return ::getpid() == process_; }
  // Error `WHAT: it belongs to process 7, got a call in its child 8; make ONE of its own there`.
  template <class... What>
  void check_here(std::string_view one, const What&... what) const {
    if (here()) return;
    fail(what..., ": it belongs to process ", process_, ", got a call in its child ", ::getpid(),
         "; make ", one, " of its own there");
  }

 private:
  pid_t process_ = ::getpid();
};

// Deletes what its maker lets go of; in a child that is kept until the child ends, reachable for
// those who look for leaks.
class OwnerDeletes {
 public:
  template <class T>
  void operator()(T* object) const {
    if (owner_.here()) {
      delete object;
    } else {
      static auto* const kept = new std::vector<T*>();
      kept->push_back(object);
    }
  }

 private:
  Owner owner_;
};

template <class T, class... Arguments>
std::shared_ptr<T> make_owned(Arguments&&... arguments) {
  return std::shared_ptr<T>(new T(std::forward<Arguments>(arguments)...), OwnerDeletes());
}

}  // namespace cairn::dist
