// Printing: one pass over the shown elements chooses format and width, a second one writes them.
// Invariant: both passes see the same elements, those that for_shown lists.
#include "cairn/tensor/print.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ostream>
#include <vector>

#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

constexpr int64_t kThreshold = 1000;
constexpr int64_t kEdge = 3;
constexpr int64_t kLineWidth = 80;
constexpr int kDigits = 4;

// Past this ratio of largest to smallest, or outside these magnitudes, fixed notation hides digits.
constexpr double kFixedRatio = 1000;
constexpr double kFixedMax = 1e8;
constexpr double kFixedMin = 1e-4;

std::string number(double value, std::chars_format format, int digits) {
  if (std::isnan(value)) return "nan";
  char text[400];  // a fixed f64 has up to 309 digits before the point
  return {text, std::to_chars(text, text + sizeof text, value, format, digits).ptr};
}

class Printer {
 public:
  explicit Printer(const Tensor& t) : t_(t), summarize_(t.numel() > kThreshold) {
    if (t.numel() > 0) choose_format();
  }

  std::string text() const {
    if (t_.numel() == 0) return "[]";
    return t_.dim() == 0 ? element(0) : block(0, 0, kIndent);
  }

  static constexpr int64_t kIndent = 7;  // of "tensor("

 private:
  // Calls fn(i) for the indices of dimension `dim` that are shown, and gap() where some are left
  // out.
  template <class Fn, class Gap>
  void for_shown(size_t dim, Fn&& fn, Gap&& gap) const {
    const int64_t size = t_.shape()[dim];
    const bool cut = summarize_ && size > 2 * kEdge;
    for (int64_t i = 0; i < size; ++i) {
      if (cut && i == kEdge) {
        gap();
        i = size - kEdge;
      }
      fn(i);
    }
  }

  // Calls fn(offset) for every shown element.
  template <class Fn>
  void visit(size_t dim, int64_t offset, Fn&& fn) const {
    if (dim == t_.shape().size()) {
      fn(offset);
      return;
    }
    for_shown(
        dim, [&](int64_t i) { visit(dim + 1, offset + i * t_.strides()[dim], fn); }, [] {});
  }

  double floating(int64_t offset) const {
    return dispatch(t_.dtype(), [&]<class T>() {
      return static_cast<double>(static_cast<const T*>(t_.raw_data())[offset]);
    });
  }

  void choose_format() {
    if (is_floating(t_.dtype())) {
      double low = HUGE_VAL;
      double high = 0;
      visit(0, 0, [&](int64_t offset) {
        const double v = floating(offset);
        if (v == 0 || !std::isfinite(v)) return;
        low = std::min(low, std::abs(v));
        high = std::max(high, std::abs(v));
        whole_ = whole_ && v == std::ceil(v);
      });
      if (high == 0) return;  // only zeros and non-finite values: no width to agree on
      scientific_ = high / low > kFixedRatio || high > kFixedMax || (!whole_ && low < kFixedMin);
      visit(0, 0, [&](int64_t offset) {
        const double v = floating(offset);
        if (v != 0 && std::isfinite(v)) widen(floating_text(v));
      });
    } else {
      visit(0, 0, [&](int64_t offset) { widen(integral_text(offset)); });
    }
  }

  void widen(const std::string& text) { width_ = std::max(width_, text.size()); }

  std::string floating_text(double v) const {
    if (scientific_) return number(v, std::chars_format::scientific, kDigits);
    if (!whole_) return number(v, std::chars_format::fixed, kDigits);
    return number(v, std::chars_format::fixed, 0) + (std::isfinite(v) ? "." : "");
  }

  std::string integral_text(int64_t offset) const {
    return dispatch(t_.dtype(), [&]<class T>() -> std::string {
      const T v = static_cast<const T*>(t_.raw_data())[offset];
      if constexpr (std::is_same_v<T, bool>)
        return v ? "True" : "False";
      else
        return std::to_string(static_cast<int64_t>(v));
    });
  }

  std::string element(int64_t offset) const {
    const std::string text =
        is_floating(t_.dtype()) ? floating_text(floating(offset)) : integral_text(offset);
    return std::string(width_ - std::min(width_, text.size()), ' ') + text;
  }

  // The brackets of dimension `dim`; `indent` is the column of the opening one.
  std::string block(size_t dim, int64_t offset, int64_t indent) const {
    const size_t deeper = t_.shape().size() - dim - 1;
    const auto at = [&](int64_t i) { return offset + i * t_.strides()[dim]; };
    std::vector<std::string> parts;
    for_shown(
        dim,
        [&](int64_t i) {
          parts.push_back(deeper == 0 ? element(at(i)) : block(dim + 1, at(i), indent + 1));
        },
        [&] { parts.push_back(deeper == 0 ? " ..." : "..."); });
    const int64_t per_line =
        deeper > 0 ? 1
                   : std::max<int64_t>(1, (kLineWidth - indent) / static_cast<int64_t>(width_ + 2));
    std::string next = ",";
    next.append(std::max<size_t>(1, deeper), '\n');
    next.append(static_cast<size_t>(indent + 1), ' ');
    std::string out = "[";
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i > 0) out += static_cast<int64_t>(i) % per_line == 0 ? next : ", ";
      out += parts[i];
    }
    return out + "]";
  }

  const Tensor& t_;
  bool summarize_ = false;
  bool whole_ = true;
  bool scientific_ = false;
  size_t width_ = 1;
};

// Appends ", suffix", on a line of its own where the last one is full.
void append_suffix(std::string& text, size_t& last_line, const std::string& suffix) {
  if (last_line + suffix.size() + 2 > kLineWidth) {
    text += ",\n" + std::string(Printer::kIndent, ' ') + suffix;
    last_line = Printer::kIndent + suffix.size();
  } else {
    text += ", " + suffix;
    last_line += suffix.size() + 2;
  }
}

std::string size_text(const Shape& shape) {
  std::string text = "size=(";
  for (size_t i = 0; i < shape.size(); ++i) text += cat(i == 0 ? "" : ", ", shape[i]);
  return text + ")";
}

}  // namespace

std::string to_string(const Tensor& t) {
  if (!t.defined()) return "tensor(undefined)";
  const Tensor host = raw::to(t, t.dtype(), kCPU);
  std::string text = "tensor(" + Printer(host).text();
  const size_t newline = text.rfind('\n');
  size_t last_line = newline == std::string::npos ? text.size() + 2 : text.size() - newline + 1;
  if (t.device() != kCPU) append_suffix(text, last_line, cat("device='", t.device(), "'"));
  // Nothing inside tells the type of an empty tensor, so only f32 goes without saying.
  const DType d = t.dtype();
  const bool is_default =
      d == DType::f32 || (t.numel() > 0 && (d == DType::i64 || d == DType::boolean));
  if (t.numel() == 0 && t.dim() != 1) append_suffix(text, last_line, size_text(t.shape()));
  if (!is_default) append_suffix(text, last_line, cat("dtype=", d));
  return text + ")";
}

std::ostream& operator<<(std::ostream& out, const Tensor& t) { return out << to_string(t); }

std::string position_text(const Shape& shape, int64_t flat) {
  if (shape.size() < 2) return cat(flat);
  Shape at = shape;
  for (size_t d = shape.size(); d-- > 0;) {
    at[d] = flat % shape[d];
    flat /= shape[d];
  }
  return cat(at);
}

}  // namespace cairn
