// The safetensors format: a streaming reader of the header, the checks, and the writer.
// Invariant: check_layout has accepted every entry before a byte of data is read.
#include "cairn/tensor/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <vector>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/file.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

static_assert(std::endian::native == std::endian::little, "the format stores little-endian values");

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxName = 4096;
constexpr uint64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr const char* kMetadata = "__metadata__";
constexpr const char* kLoad = "load_safetensors";
constexpr const char* kSave = "save_safetensors";

struct TypeName {
  const char* name;
  DType dtype;
};
// The order of writing, widest first.
constexpr TypeName kTypes[] = {{"I64", DType::i64}, {"F64", DType::f64},     {"F32", DType::f32},
                               {"I32", DType::i32}, {"BF16", DType::bf16},   {"F16", DType::f16},
                               {"U8", DType::u8},   {"BOOL", DType::boolean}};
constexpr const char* kOtherTypes[] = {"I16",     "U16",     "I8",      "U32", "U64",
                                       "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"};
constexpr const char* kNarrowTypes[] = {"F4", "F6_E2M3", "F6_E3M2"};

size_t write_order(DType dtype) {
  return static_cast<size_t>(std::find_if(std::begin(kTypes), std::end(kTypes),
                                          [&](const TypeName& t) { return t.dtype == dtype; }) -
                             std::begin(kTypes));
}

// `'file' breaks rule R5: what must be, got what`.
template <class... Parts>
std::string broken(const std::string& path, const char* rule, const Parts&... parts) {
  return cat(kLoad, ": '", path, "' breaks rule ", rule, ": ", parts...);
}

struct Entry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Takes the parser's events one by one, so that no document is built and a wrong value stops the
// parse where it stands. Returning false stops; error() then says why.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const std::string& path, std::map<std::string, std::string>* metadata)
      : path_(path), metadata_(metadata) {}

  std::vector<Entry>& entries() { return entries_; }
  const std::string& error() const { return error_; }

  bool null() override { return wrong_value(); }
  bool boolean(bool) override { return wrong_value(); }
  bool number_integer(number_integer_t) override { return wrong_value(); }
  bool number_float(number_float_t, const string_t&) override { return wrong_value(); }
  bool binary(binary_t&) override { return wrong_value(); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(size_t) override;
  bool key(string_t& name) override;
  bool end_object() override;
  bool start_array(size_t) override;
  bool end_array() override;
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    return stop("R2", "header must be valid JSON, got an error at byte ", position);
  }

 private:
  enum class Level { start, header, metadata, tensor, shape, offsets };
  enum Field { kDType = 1, kShape = 2, kOffsets = 4, kAllFields = 7 };

  template <class... Parts>
  bool stop(const char* rule, const Parts&... parts) {
    if (error_.empty()) error_ = broken(path_, rule, parts...);
    return false;
  }
  bool wrong_value();
  bool set_dtype(const std::string& name);

  const std::string& path_;
  std::map<std::string, std::string>* metadata_;
  std::vector<Entry> entries_;
  std::set<std::string> metadata_keys_;
  std::string error_;
  std::string key_;
  Level level_ = Level::start;
  bool seen_metadata_ = false;
  int fields_ = 0;
  size_t offsets_ = 0;
};

bool HeaderReader::wrong_value() {
  switch (level_) {
    case Level::start:
      return stop("R2", "header must be a JSON object");
    case Level::header:
      if (key_ == kMetadata) return stop("R3", "__metadata__ must be an object of text");
      return stop("R4", "tensor '", key_, "' must be an object");
    case Level::metadata:
      return stop("R3", "__metadata__ entry '", key_, "' must be text");
    case Level::tensor:
      return stop("R4", "tensor '", entries_.back().name, "' must have a fitting value for '", key_,
                  "'");
    case Level::shape:
      return stop("R4", "tensor '", entries_.back().name,
                  "' must have a shape of non-negative integers");
    case Level::offsets:
      return stop("R4", "tensor '", entries_.back().name,
                  "' must have two non-negative integers as data_offsets");
  }
  return false;
}

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (level_ == Level::shape) {
    Entry& entry = entries_.back();
    if (value > kMaxInt64) return stop("R6", "tensor '", entry.name, "' has a size of ", value);
    if (entry.shape.size() == kMaxRank)
      return stop("R4", "tensor '", entry.name, "' must have at most ", kMaxRank, " dimensions");
    entry.shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  if (level_ == Level::offsets && offsets_ < 2) {
    (offsets_++ == 0 ? entries_.back().begin : entries_.back().end) = value;
    return true;
  }
  return wrong_value();
}

bool HeaderReader::set_dtype(const std::string& name) {
  Entry& entry = entries_.back();
  for (const auto& type : kTypes)
    if (name == type.name) {
      entry.dtype = type.dtype;
      fields_ |= kDType;
      return true;
    }
  const auto is_name = [&](const char* other) { return name == other; };
  if (std::any_of(std::begin(kNarrowTypes), std::end(kNarrowTypes), is_name))
    return stop("R11", "tensor '", entry.name, "' must have a dtype of whole bytes, got ", name);
  const bool known = std::any_of(std::begin(kOtherTypes), std::end(kOtherTypes), is_name);
  return stop("R4", "tensor '", entry.name,
              "' must have dtype F64, F32, BF16, F16, I64, I32, U8 or BOOL, got ",
              known ? "the unsupported " : "the unknown ", name.substr(0, 40));
}

bool HeaderReader::string(string_t& value) {
  if (level_ == Level::metadata) {
    if (metadata_ != nullptr) (*metadata_)[key_] = value;
    return true;
  }
  if (level_ == Level::tensor && key_ == "dtype") return set_dtype(value);
  return wrong_value();
}

bool HeaderReader::start_object(size_t) {
  if (level_ == Level::start) {
    level_ = Level::header;
    return true;
  }
  if (level_ != Level::header) return wrong_value();
  if (key_ == kMetadata) {
    level_ = Level::metadata;
    return true;
  }
  if (entries_.size() == kMaxTensors)
    return stop("R8", "file must hold at most ", kMaxTensors, " tensors");
  entries_.emplace_back();
  entries_.back().name = key_;
  level_ = Level::tensor;
  fields_ = 0;
  return true;
}

bool HeaderReader::key(string_t& name) {
  if (name.size() > kMaxName)
    return stop("R8", "names must have at most ", kMaxName, " bytes, got ", name.size());
  if (level_ == Level::header && name == kMetadata) {
    if (seen_metadata_) return stop("R7", "name '", name, "' appears twice");
    seen_metadata_ = true;
  } else if (level_ == Level::metadata) {
    if (!metadata_keys_.insert(name).second)
      return stop("R7", "__metadata__ name '", name, "' appears twice");
  } else if (level_ == Level::tensor) {
    const int field = name == "dtype"          ? kDType
                      : name == "shape"        ? kShape
                      : name == "data_offsets" ? kOffsets
                                               : 0;
    if (field == 0 || (fields_ & field) != 0)
      return stop("R4", "tensor '", entries_.back().name,
                  "' must have dtype, shape and data_offsets once each, got ",
                  field == 0 ? "also" : "again", " '", name.substr(0, 40), "'");
  }
  key_ = name;
  return true;
}

bool HeaderReader::end_object() {
  if (level_ == Level::tensor && fields_ != kAllFields)
    return stop(
        "R4", "tensor '", entries_.back().name,
        "' must have dtype, shape and data_offsets once each, got no ",
        (fields_ & kDType) == 0 ? "dtype" : ((fields_ & kShape) == 0 ? "shape" : "data_offsets"));
  level_ = Level::header;
  return true;
}

bool HeaderReader::start_array(size_t) {
  if (level_ == Level::tensor && key_ == "shape") {
    level_ = Level::shape;
    fields_ |= kShape;
    return true;
  }
  if (level_ == Level::tensor && key_ == "data_offsets") {
    level_ = Level::offsets;
    offsets_ = 0;
    fields_ |= kOffsets;
    return true;
  }
  return wrong_value();
}

bool HeaderReader::end_array() {
  if (level_ == Level::offsets && offsets_ != 2) return wrong_value();
  level_ = Level::tensor;
  return true;
}

// R5, R6, R7. Sorts the entries by offset.
void check_layout(const std::string& path, std::vector<Entry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  for (size_t i = 1; i < entries.size(); ++i)
    if (entries[i].name == entries[i - 1].name)
      throw Error(broken(path, "R7", "name '", entries[i].name, "' appears twice"));

  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t at = 0;
  for (const Entry& e : entries) {
    if (e.begin != at || e.end < e.begin || e.end > data_bytes)
      throw Error(broken(path, "R5", "tensor '", e.name, "' must start at byte ", at,
                         " and end by byte ", data_bytes, ", got data_offsets [", e.begin, ", ",
                         e.end, "]"));
    uint64_t bytes = static_cast<uint64_t>(item_size(e.dtype));
    bool fits = true;
    for (int64_t size : e.shape)
      fits = fits && !__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes);
    if (!fits || bytes != e.end - e.begin)
      throw Error(broken(path, "R6", "tensor '", e.name, "' of shape ", e.shape, " and dtype ",
                         e.dtype, " must take ", fits ? cat(bytes) : "less than 2^64",
                         " bytes, got ", e.end - e.begin));
    // A size-0 tensor may have other sizes whose product would overflow an index.
    int64_t numel = 1;
    for (int64_t size : e.shape)
      if (size != 0 && __builtin_mul_overflow(numel, size, &numel))
        throw Error(broken(path, "R6", "tensor '", e.name, "' of shape ", e.shape,
                           " must have sizes whose product fits an int64"));
    at = e.end;
  }
  if (at != data_bytes)
    throw Error(broken(path, "R5", "tensors must end at the last of ", data_bytes,
                       " data bytes, got ", at));
}

std::string read_header(const ReadFile& file) {
  const std::string& path = file.path();
  if (file.size() < 8)
    throw Error(broken(path, "R1", "file must have at least 8 bytes, got ", file.size()));
  uint64_t length = 0;
  file.read(&length, 8, 0);
  if (length > kMaxHeader)
    throw Error(
        broken(path, "R1", "header must have at most ", kMaxHeader, " bytes, got ", length));
  if (length > static_cast<uint64_t>(file.size()) - 8)
    throw Error(broken(path, "R1", "header of ", length, " bytes must lie inside the file of ",
                       file.size(), " bytes"));
  std::string header(length, '\0');
  file.read(header.data(), static_cast<int64_t>(length), 8);
  return header;
}

// The JSON library takes a zero byte for the end of its input and skips a byte-order mark.
bool is_plain_object_text(const std::string& text) {
  return !text.empty() && text[0] == '{' && text.find('\0') == std::string::npos;
}

Tensor read_tensor(const ReadFile& file, const Entry& entry, int64_t data_start) {
  Tensor t = empty(entry.shape, {.dtype = entry.dtype});
  const int64_t bytes = t.nbytes();
  file.read(t.raw_data(), bytes, data_start + static_cast<int64_t>(entry.begin));
  if (entry.dtype == DType::boolean) {
    const auto* values = static_cast<const uint8_t*>(t.raw_data());
    for (int64_t i = 0; i < bytes; ++i)
      if (values[i] > 1)
        throw Error(broken(file.path(), "R9", "tensor '", entry.name,
                           "' must have BOOL bytes of 0 or 1, got ", static_cast<int>(values[i])));
  }
  return t;
}

// The "weight_map" of an index file: tensor name to shard name (R12).
std::map<std::string, std::string> read_index(const std::string& path) {
  const ReadFile file(path, kLoad);
  if (static_cast<uint64_t>(file.size()) > kMaxHeader)
    throw Error(
        broken(path, "R1", "index must have at most ", kMaxHeader, " bytes, got ", file.size()));
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(text.data(), file.size(), 0);
  std::set<std::string> keys;
  std::string twice;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (event == nlohmann::json::parse_event_t::key &&
        !keys.insert(cat(depth, " ", parsed.get<std::string>())).second)
      twice = parsed.get<std::string>();
    return depth <= 8;  // deeper values are dropped: nothing is wanted from them
  };
  const nlohmann::json index =
      is_plain_object_text(text) ? nlohmann::json::parse(text, watch, false) : nlohmann::json();
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw Error(broken(path, "R12", "index must be a JSON object with an object 'weight_map'"));
  if (!twice.empty()) throw Error(broken(path, "R7", "name '", twice, "' appears twice"));
  std::map<std::string, std::string> map;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    const std::string value = shard.is_string() ? shard.get<std::string>() : "";
    if (value.empty() || value == "." || value == ".." ||
        value.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
      throw Error(broken(path, "R12", "shard of tensor '", name,
                         "' must be a plain file name, got '", value, "'"));
    map[name] = value;
  }
  return map;
}

std::string quoted(const std::string& path, const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(kSave, ": '", path, "' must get names and metadata in valid UTF-8");
  }
}

using Item = std::pair<const std::string*, const Tensor*>;

// Names and tensors in the order of writing; checks what can be written.
std::vector<Item> sorted_items(const std::string& path,
                               const std::map<std::string, Tensor>& tensors) {
  check(tensors.size() <= kMaxTensors, kSave, ": '", path, "' must get at most ", kMaxTensors,
        " tensors, got ", tensors.size());
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) {
    check(tensor.defined(), kSave, ": tensor '", name, "' must be defined");
    check(name != kMetadata && name.size() <= kMaxName, kSave,
          ": a tensor's name must have at most ", kMaxName, " bytes and not be __metadata__, got '",
          name.substr(0, 40), "'");
    items.emplace_back(&name, &tensor);
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return write_order(a.second->dtype()) < write_order(b.second->dtype());
  });
  return items;
}

std::string header_text(const std::string& path, std::span<const Item> items,
                        const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  const auto comma = [&] {
    if (header.size() > 1) header += ',';
  };
  if (!metadata.empty()) {
    header += cat('"', kMetadata, "\":{");
    const char* separator = "";
    for (const auto& [key, value] : metadata) {
      header += cat(separator, quoted(path, key), ':', quoted(path, value));
      separator = ",";
    }
    header += '}';
  }
  int64_t at = 0;
  for (const auto& [name, tensor] : items) {
    comma();
    header += cat(quoted(path, *name), ":{\"dtype\":\"", kTypes[write_order(tensor->dtype())].name,
                  "\",\"shape\":[");
    for (size_t i = 0; i < tensor->shape().size(); ++i)
      header += cat(i == 0 ? "" : ",", tensor->shape()[i]);
    const int64_t end = checked_add(at, tensor->nbytes(), kSave);
    header += cat("],\"data_offsets\":[", at, ',', end, "]}");
    at = end;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data starts at a multiple of 8
  check(header.size() <= kMaxHeader, kSave, ": '", path, "' must get a header of at most ",
        kMaxHeader, " bytes, got ", header.size());
  return header;
}

}  // namespace

std::map<std::string, Tensor> load_safetensors(const std::string& path,
                                               std::map<std::string, std::string>* metadata) {
  const ReadFile file(path, kLoad);
  const std::string header = read_header(file);
  std::map<std::string, std::string> read_metadata;
  HeaderReader reader(path, metadata != nullptr ? &read_metadata : nullptr);
  if (!is_plain_object_text(header))
    throw Error(broken(path, "R2",
                       "header must be a JSON object that starts with '{' and has no "
                       "zero bytes"));
  if (!nlohmann::json::sax_parse(header, &reader)) throw Error(reader.error());
  const auto data_start = static_cast<int64_t>(8 + header.size());
  check_layout(path, reader.entries(), static_cast<uint64_t>(file.size() - data_start));

  std::map<std::string, Tensor> tensors;
  for (const Entry& entry : reader.entries())
    tensors.emplace(entry.name, read_tensor(file, entry, data_start));
  if (metadata != nullptr) *metadata = std::move(read_metadata);
  return tensors;
}

std::map<std::string, Tensor> load_sharded_safetensors(const std::string& index_path) {
  const auto map = read_index(index_path);
  const size_t slash = index_path.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : index_path.substr(0, slash + 1);
  std::map<std::string, std::map<std::string, Tensor>> shards;
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, shard] : map) {
    auto [it, fresh] = shards.try_emplace(shard);
    if (fresh) it->second = load_safetensors(folder + shard);
    const auto found = it->second.find(name);
    if (found == it->second.end())
      throw Error(
          broken(index_path, "R12", "tensor '", name, "' must exist in shard '", shard, "'"));
    tensors.emplace(name, found->second);
  }
  return tensors;
}

void save_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  const std::vector<Item> items = sorted_items(path, tensors);
  const std::string header = header_text(path, items, metadata);
  AtomicFile file(path, kSave);
  const uint64_t length = header.size();
  file.write(&length, 8);
  file.write(header);
  for (const auto& [name, tensor] : items) {
    const Tensor values = raw::contiguous(raw::to(*tensor, tensor->dtype(), kCPU));
    file.write(values.raw_data(), values.nbytes());
  }
  file.commit();
}

}  // namespace cairn
