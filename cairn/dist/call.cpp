// Calls in words.
#include "cairn/dist/call.h"

#include <algorithm>

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

CallNotice::CallNotice(const Call& call)
    : is(call.is), dims(static_cast<int64_t>(call.shape.size())) {
  std::copy(call.shape.begin(), call.shape.end(), sizes.begin());
}

std::string describe(const CallNotice& notice, int peer) {
  const auto dims = static_cast<size_t>(std::clamp<int64_t>(notice.dims, 0, kMaxRank));
  return describe(notice.is, Shape(std::span(notice.sizes).first(dims)), peer);
}

std::optional<std::string> mismatch(const Call& call, std::span<const CallNotice> all,
                                    std::string_view group) {
  if (std::all_of(all.begin(), all.end(),
                  [&](const CallNotice& notice) { return notice.is == call.is; }))
    return {};
  std::string text =
      cat(describe(call), ": all ranks must give the same call, got in the group '", group, "'");
  for (size_t r = 0; r < all.size(); ++r)
    text += cat(r == 0 ? ": rank " : "; rank ", r, ": ", describe(all[r]));
  return text;
}

}  // namespace cairn::dist
