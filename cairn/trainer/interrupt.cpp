// The SIGINT handler. A flag is all that may be touched in one.
#include "cairn/trainer/interrupt.h"

namespace cairn::trainer {
namespace {

volatile std::sig_atomic_t interrupt_requested = 0;

extern "C" void note_interrupt(int) { interrupt_requested = 1; }

}  // namespace

InterruptScope::InterruptScope() {
  struct sigaction current {};
  // A nested run and a program with its own handling keep theirs.
  if (sigaction(SIGINT, nullptr, &current) != 0 || current.sa_handler != SIG_DFL) return;
  interrupt_requested = 0;
  struct sigaction action {};
  action.sa_handler = note_interrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);  // the second one is the system's
  installed_ = sigaction(SIGINT, &action, &before_) == 0;
}

InterruptScope::~InterruptScope() {
  if (!installed_) return;
  sigaction(SIGINT, &before_, nullptr);
  interrupt_requested = 0;
}

bool InterruptScope::requested() { return interrupt_requested != 0; }

}  // namespace cairn::trainer
