// Calls in words.
#include "cairn/dist/call.h"

namespace cairn::dist {

std::string_view name_of(CallKind kind) {
  switch (kind) {
    case CallKind::all_reduce:
      return "all_reduce";
    case CallKind::reduce:
      return "reduce";
    case CallKind::reduce_scatter:
      return "reduce_scatter";
    case CallKind::all_gather:
      return "all_gather";
    case CallKind::broadcast:
      return "broadcast";
    case CallKind::scatter:
      return "scatter";
    case CallKind::gather:
      return "gather";
    case CallKind::all_to_all:
      return "all_to_all";
    case CallKind::send:
      return "send";
    case CallKind::recv:
      return "recv";
    case CallKind::barrier:
      return "barrier";
  }
  return "unknown";
}

std::string describe(const CallShape& is, const Shape& shape, int peer) {
  std::string out = cat(is.kind, " #", is.sequence);
  if (is.kind == CallKind::all_reduce || is.kind == CallKind::reduce ||
      is.kind == CallKind::reduce_scatter)
    out += cat(" (", is.op, ")");
  if (is.kind != CallKind::barrier) out += cat(" of ", is.dtype, " ", shape);
  if (is.root >= 0) out += cat(" with root ", is.root);
  if (peer >= 0) out += cat(is.kind == CallKind::send ? " to rank " : " from rank ", peer);
  return out;
}

std::string describe(const Call& call) { return describe(call.is, call.shape, call.peer); }

}  // namespace cairn::dist
