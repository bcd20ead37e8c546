// The unpickler is a loop over opcodes with an explicit stack of value indices; nothing recurses
// and nothing is called.
//
// What bounds it: each opcode makes at most one value (constants None, True, False and () are
// shared), so that memory is linear in the pickle's bytes and capped by kMaxPickleValues; memo
// indices are capped likewise, so that a LONG_BINPUT of 2^32-1 allocates nothing; lengths are
// compared with the bytes that are left before they are used; numbers of elements are multiplied in
// 128 bits.
#include "codec/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

using Type = PickleValue::Type;

constexpr uint32_t kMaxMemo = 1 << 20;
constexpr size_t kMaxDims = 3;  // also what keeps CheckExtent from overflowing
constexpr uint32_t kUnset = UINT32_MAX;

// clang-format off
enum Op : uint8_t {
  kMark = '(', kEmptyTuple = ')', kStop = '.', kBinInt = 'J', kBinInt1 = 'K', kBinInt2 = 'M',
  kNone = 'N', kBinPersId = 'Q', kReduce = 'R', kBinUnicode = 'X', kEmptyList = ']', kAppend = 'a',
  kGlobal = 'c', kAppends = 'e', kBinGet = 'h', kLongBinGet = 'j', kBinPut = 'q',
  kLongBinPut = 'r', kSetItem = 's', kTuple = 't', kSetItems = 'u', kEmptyDict = '}',
  kBinFloat = 'G', kProto = 0x80, kTuple1 = 0x85, kTuple2 = 0x86, kTuple3 = 0x87, kNewTrue = 0x88,
  kNewFalse = 0x89, kLong1 = 0x8a, kShortBinUnicode = 0x8c, kBinUnicode8 = 0x8d,
  kStackGlobal = 0x93, kMemoize = 0x94, kFrame = 0x95,
};
// clang-format on

// Opcodes that real pickles use and this one refuses, for the error text.
constexpr std::pair<uint8_t, absl::string_view> kRefusedOps[] = {
    {'b', "BUILD"},   {'i', "INST"},       {'o', "OBJ"},        {'P', "PERSID"},
    {'I', "INT"},     {'L', "LONG"},       {'F', "FLOAT"},      {'S', "STRING"},
    {'V', "UNICODE"}, {'0', "POP"},        {'1', "POP_MARK"},   {'2', "DUP"},
    {'p', "PUT"},     {'g', "GET"},        {'d', "DICT"},       {'l', "LIST"},
    {0x81, "NEWOBJ"}, {0x82, "EXT1"},      {0x83, "EXT2"},      {0x84, "EXT4"},
    {0x8b, "LONG4"},  {0x8f, "EMPTY_SET"}, {0x92, "NEWOBJ_EX"}, {0x96, "BYTEARRAY8"},
};
absl::string_view RefusedOpName(uint8_t op) {
  for (const auto& [refused, name] : kRefusedOps) {
    if (refused == op) return name;
  }
  return "unknown";
}

struct GlobalName {
  absl::string_view module, name;
  PickleGlobal global;
};
constexpr GlobalName kGlobals[] = {
    {"collections", "OrderedDict", PickleGlobal::kOrderedDict},
    {"torch._utils", "_rebuild_tensor_v2", PickleGlobal::kRebuildTensor},
    {"torch", "FloatStorage", PickleGlobal::kFloatStorage},
    {"torch", "DoubleStorage", PickleGlobal::kDoubleStorage},
    {"torch", "BFloat16Storage", PickleGlobal::kBFloat16Storage},
    {"torch", "HalfStorage", PickleGlobal::kHalfStorage},
};

std::optional<StorageType> StorageTypeOf(const PickleValue& v) {
  if (v.type != Type::kGlobal) return std::nullopt;
  switch (static_cast<PickleGlobal>(v.integer)) {
    case PickleGlobal::kFloatStorage:
      return StorageType::kF32;
    case PickleGlobal::kDoubleStorage:
      return StorageType::kF64;
    case PickleGlobal::kBFloat16Storage:
      return StorageType::kBf16;
    case PickleGlobal::kHalfStorage:
      return StorageType::kF16;
    default:
      return std::nullopt;
  }
}

bool IsGlobal(const PickleValue& v, PickleGlobal g) {
  return v.type == Type::kGlobal && v.integer == static_cast<int64_t>(g);
}

// Text from the file in an error: escaped and cut.
std::string Quote(absl::string_view s) {
  return absl::StrCat("\"", absl::CHexEscape(s.substr(0, 60)), s.size() > 60 ? "...\"" : "\"");
}

class Unpickler {
 public:
  explicit Unpickler(absl::Span<const uint8_t> bytes)
      : text_(reinterpret_cast<const char*>(bytes.data()), bytes.size()) {
    out_.values.resize(4);
    out_.values[kIdFalse].type = out_.values[kIdTrue].type = Type::kBool;
    out_.values[kIdTrue].integer = 1;
    out_.values[kIdEmptyTuple].type = Type::kTuple;
  }

  absl::StatusOr<Pickle> Run() {
    while (true) {
      op_at_ = at_;
      if (at_ >= text_.size()) return Bad("ends without STOP");
      const auto op = static_cast<uint8_t>(text_[at_++]);
      if (op == kStop) break;
      RETURN_IF_ERROR(Step(op));
    }
    if (stack_.size() != 1 || !marks_.empty())
      return Bad("STOP with ", stack_.size(), " values on the stack");
    out_.root = stack_[0];
    return std::move(out_);
  }

 private:
  // The shared constants.
  enum : uint32_t { kIdNone, kIdFalse, kIdTrue, kIdEmptyTuple };

  template <typename... Args>
  absl::Status Bad(const Args&... args) const {
    return absl::InvalidArgumentError(absl::StrCat("pickle, byte ", op_at_, ": ", args...));
  }

  absl::Status Step(uint8_t op) {
    switch (op) {
      case kProto:
      case kFrame:
        return Framing(op);
      case kNone:
        return Push(kIdNone);
      case kNewFalse:
        return Push(kIdFalse);
      case kNewTrue:
        return Push(kIdTrue);
      case kEmptyTuple:
        return Push(kIdEmptyTuple);
      case kEmptyDict:
        return PushNew(Type::kDict);
      case kEmptyList:
        return PushNew(Type::kList);
      case kBinInt:
      case kBinInt1:
      case kBinInt2:
      case kLong1:
      case kBinFloat:
        return Number(op);
      case kBinUnicode:
      case kShortBinUnicode:
      case kBinUnicode8:
        return String(op);
      case kMark:
        marks_.push_back(stack_.size());
        return absl::OkStatus();
      case kTuple:
      case kTuple1:
      case kTuple2:
      case kTuple3:
        return Tuple(op);
      case kAppend:
      case kAppends:
      case kSetItem:
      case kSetItems:
        return Fill(op);
      case kBinPut:
      case kLongBinPut:
      case kMemoize:
        return Memoize(op);
      case kBinGet:
      case kLongBinGet:
        return Recall(op);
      case kGlobal:
      case kStackGlobal:
        return Global(op);
      case kBinPersId:
        return PersistentId();
      case kReduce:
        return Reduce();
      default:
        return Bad(absl::StrFormat("opcode 0x%02x (%s) is not allowed", op, RefusedOpName(op)));
    }
  }

  // Input.
  absl::StatusOr<absl::string_view> Take(uint64_t n) {
    if (n > text_.size() - at_)
      return Bad("wants ", n, " bytes, ", text_.size() - at_, " are left");
    const absl::string_view s = text_.substr(at_, n);
    at_ += n;
    return s;
  }
  absl::StatusOr<uint64_t> TakeUnsigned(int bytes) {
    ASSIGN_OR_RETURN(const absl::string_view s, Take(bytes));
    uint64_t v = 0;
    for (int i = 0; i < bytes; ++i) v |= uint64_t{static_cast<uint8_t>(s[i])} << (8 * i);
    return v;
  }
  absl::StatusOr<absl::string_view> TakeLine() {
    const size_t end = text_.find('\n', at_);
    if (end == absl::string_view::npos) return Bad("a line without end");
    const absl::string_view line = text_.substr(at_, end - at_);
    at_ = end + 1;
    return line;
  }

  // Stack. What lies below the innermost mark is out of reach until the mark is consumed.
  absl::Status Push(uint32_t id) {
    stack_.push_back(id);
    return absl::OkStatus();
  }
  absl::StatusOr<PickleValue*> New(Type type) {
    if (out_.values.size() >= kMaxPickleValues)
      return Bad("more than ", kMaxPickleValues, " values");
    stack_.push_back(static_cast<uint32_t>(out_.values.size()));
    out_.values.emplace_back().type = type;
    return &out_.values.back();
  }
  absl::Status PushNew(Type type) { return New(type).status(); }
  size_t Available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  absl::Status Need(size_t n) const {
    if (Available() < n) return Bad("needs ", n, " values, the stack has ", Available());
    return absl::OkStatus();
  }
  // Takes the `n` topmost values.
  absl::StatusOr<std::vector<uint32_t>> PopN(size_t n) {
    RETURN_IF_ERROR(Need(n));
    std::vector<uint32_t> items(stack_.end() - n, stack_.end());
    stack_.resize(stack_.size() - n);
    return items;
  }
  // Takes the values down to the innermost mark, and the mark.
  absl::StatusOr<std::vector<uint32_t>> PopToMark() {
    if (marks_.empty()) return Bad("no MARK on the stack");
    auto items = PopN(Available());
    marks_.pop_back();
    return items;
  }

  absl::Status Framing(uint8_t op) {
    if (op == kFrame) {  // protocol 4 cuts the stream into frames; only their end could be checked,
                         // and nothing depends on it
      ASSIGN_OR_RETURN(const uint64_t n, TakeUnsigned(8));
      if (n > text_.size() - at_)
        return Bad("FRAME of ", n, " bytes, ", text_.size() - at_, " are left");
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const uint64_t protocol, TakeUnsigned(1));
    if (protocol < 2 || protocol > 5) return Bad("protocol ", protocol, ", 2 to 5 are supported");
    return absl::OkStatus();
  }

  absl::Status Number(uint8_t op) {
    if (op == kBinFloat) {  // only skipped: nothing that is read here is a float
      RETURN_IF_ERROR(Take(8).status());
      return PushNew(Type::kFloat);
    }
    int bytes = op == kBinInt ? 4 : op == kBinInt2 ? 2 : 1;
    const bool is_signed = op == kBinInt || op == kLong1;
    if (op == kLong1) {
      ASSIGN_OR_RETURN(const uint64_t n, TakeUnsigned(1));
      if (n > 8) return Bad("an integer of ", n, " bytes, at most 8 are supported");
      bytes = static_cast<int>(n);
    }
    ASSIGN_OR_RETURN(uint64_t v, TakeUnsigned(bytes));
    if (is_signed && bytes > 0 && bytes < 8 && (v >> (8 * bytes - 1) & 1) != 0)
      v |= ~uint64_t{0} << (8 * bytes);
    ASSIGN_OR_RETURN(PickleValue* const value, New(Type::kInt));
    value->integer = static_cast<int64_t>(v);
    return absl::OkStatus();
  }

  absl::Status String(uint8_t op) {
    ASSIGN_OR_RETURN(const uint64_t n, TakeUnsigned(op == kBinUnicode        ? 4
                                                    : op == kShortBinUnicode ? 1
                                                                             : 8));
    ASSIGN_OR_RETURN(const absl::string_view text, Take(n));
    ASSIGN_OR_RETURN(PickleValue* const value, New(Type::kString));
    value->text = text;
    return absl::OkStatus();
  }

  absl::Status Tuple(uint8_t op) {
    ASSIGN_OR_RETURN(std::vector<uint32_t> items,
                     op == kTuple ? PopToMark() : PopN(op - kTuple1 + 1));
    ASSIGN_OR_RETURN(PickleValue* const value, New(Type::kTuple));
    value->items = std::move(items);
    return absl::OkStatus();
  }

  // Adds to the list or dict below the items.
  absl::Status Fill(uint8_t op) {
    const bool to_dict = op == kSetItem || op == kSetItems;
    ASSIGN_OR_RETURN(const std::vector<uint32_t> items,
                     op == kAppends || op == kSetItems ? PopToMark() : PopN(to_dict ? 2 : 1));
    RETURN_IF_ERROR(Need(1));
    PickleValue& target = out_.values[stack_.back()];
    if (target.type != (to_dict ? Type::kDict : Type::kList)) {
      return Bad("adds items to a ", PickleTypeName(target.type));
    }
    if (to_dict && items.size() % 2 != 0) return Bad("a dict key without a value");
    target.items.insert(target.items.end(), items.begin(), items.end());
    return absl::OkStatus();
  }

  absl::Status Memoize(uint8_t op) {
    uint64_t index = memo_used_;
    if (op != kMemoize) {
      ASSIGN_OR_RETURN(index, TakeUnsigned(op == kBinPut ? 1 : 4));
    }
    RETURN_IF_ERROR(Need(1));
    if (index >= kMaxMemo) return Bad("memo index ", index, ", below ", kMaxMemo, " is supported");
    if (index >= memo_.size()) memo_.resize(index + 1, kUnset);
    if (memo_[index] == kUnset) ++memo_used_;
    memo_[index] = stack_.back();
    return absl::OkStatus();
  }

  absl::Status Recall(uint8_t op) {
    ASSIGN_OR_RETURN(const uint64_t index, TakeUnsigned(op == kBinGet ? 1 : 4));
    if (index >= memo_.size() || memo_[index] == kUnset)
      return Bad("memo index ", index, " was never set");
    return Push(memo_[index]);
  }

  absl::Status Global(uint8_t op) {
    absl::string_view module, name;
    if (op == kStackGlobal) {
      ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopN(2));
      const PickleValue &m = out_.at(items[0]), &n = out_.at(items[1]);
      if (m.type != Type::kString || n.type != Type::kString)
        return Bad("STACK_GLOBAL without two strings");
      module = m.text;
      name = n.text;
    } else {
      ASSIGN_OR_RETURN(module, TakeLine());
      ASSIGN_OR_RETURN(name, TakeLine());
    }
    for (const GlobalName& g : kGlobals) {
      if (g.module != module || g.name != name) continue;
      ASSIGN_OR_RETURN(PickleValue* const value, New(Type::kGlobal));
      value->integer = static_cast<int64_t>(g.global);
      return absl::OkStatus();
    }
    return Bad("global ", Quote(absl::StrCat(module.substr(0, 60), ".", name.substr(0, 60))),
               " is not allowed");
  }

  // ("storage", <storage class>, key, location, number of elements)
  absl::Status PersistentId() {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopN(1));
    const PickleValue& id = out_.at(items[0]);
    const auto part = [&](size_t i) -> const PickleValue& { return out_.at(id.items[i]); };
    if (id.type != Type::kTuple || id.items.size() != 5 || part(0).type != Type::kString ||
        part(0).text != "storage" || part(2).type != Type::kString || part(4).type != Type::kInt) {
      return Bad("persistent id is not (\"storage\", class, key, location, elements)");
    }
    const std::optional<StorageType> type = StorageTypeOf(part(1));
    if (!type) return Bad("persistent id names no storage class that is supported");
    if (part(4).integer < 0) return Bad("storage of ", part(4).integer, " elements");
    PickleStorage storage;
    storage.type = *type;
    storage.key = part(2).text;
    storage.elements = part(4).integer;
    ASSIGN_OR_RETURN(PickleValue* const value, New(Type::kStorage));
    value->integer = static_cast<int64_t>(out_.storages.size());
    out_.storages.push_back(storage);
    return absl::OkStatus();
  }

  absl::Status Reduce() {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopN(2));
    const PickleValue &callable = out_.at(items[0]), &args = out_.at(items[1]);
    if (args.type != Type::kTuple) return Bad("REDUCE with arguments that are no tuple");
    if (IsGlobal(callable, PickleGlobal::kOrderedDict)) {
      if (!args.items.empty()) return Bad("OrderedDict with arguments");
      return PushNew(Type::kDict);
    }
    if (IsGlobal(callable, PickleGlobal::kRebuildTensor)) return RebuildTensor(args.items);
    return Bad("REDUCE of a ", PickleTypeName(callable.type), ", which cannot be called");
  }

  // (storage, offset, shape, strides, requires_grad, hooks [, metadata])
  absl::Status RebuildTensor(absl::Span<const uint32_t> args) {
    if (args.size() < 6 || args.size() > 7)
      return Bad("tensor of ", args.size(), " arguments, 6 or 7 are known");
    const PickleValue &storage = out_.at(args[0]), &offset = out_.at(args[1]);
    if (storage.type != Type::kStorage)
      return Bad("tensor of a ", PickleTypeName(storage.type), ", not a storage");
    if (offset.type != Type::kInt || offset.integer < 0)
      return Bad("tensor without a storage offset");
    PickleTensor t;
    t.storage = static_cast<uint32_t>(storage.integer);
    t.offset = offset.integer;
    ASSIGN_OR_RETURN(t.shape, Dims(out_.at(args[2]), "shape"));
    ASSIGN_OR_RETURN(t.strides, Dims(out_.at(args[3]), "strides"));
    if (t.shape.size() != t.strides.size())
      return Bad("tensor of ", t.shape.size(), " dimensions and ", t.strides.size(), " strides");
    RETURN_IF_ERROR(CheckExtent(t));
    ASSIGN_OR_RETURN(PickleValue* const value, New(Type::kTensor));
    value->integer = static_cast<int64_t>(out_.tensors.size());
    out_.tensors.push_back(std::move(t));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<int64_t>> Dims(const PickleValue& v, absl::string_view what) const {
    if (v.type != Type::kTuple || v.items.size() > kMaxDims)
      return Bad("tensor ", what, " is no tuple of at most ", kMaxDims);
    std::vector<int64_t> dims;
    for (uint32_t id : v.items) {
      const PickleValue& d = out_.at(id);
      if (d.type != Type::kInt || d.integer < 0)
        return Bad("tensor ", what, " has an entry that is no size");
      dims.push_back(d.integer);
    }
    return dims;
  }

  absl::Status CheckExtent(const PickleTensor& t) const {
    __extension__ using Wide = unsigned __int128;
    if (std::count(t.shape.begin(), t.shape.end(), 0) > 0)
      return absl::OkStatus();  // no element at all
    Wide last = t.offset;       // at most 2^63 + 3 * 2^126
    for (size_t i = 0; i < t.shape.size(); ++i) last += Wide(t.shape[i] - 1) * Wide(t.strides[i]);
    const int64_t elements = out_.storages[t.storage].elements;
    if (last >= Wide(elements))
      return Bad("tensor reaches beyond its storage of ", elements, " elements");
    return absl::OkStatus();
  }

  const absl::string_view text_;
  size_t at_ = 0, op_at_ = 0;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;  // stack sizes
  std::vector<uint32_t> memo_;
  uint32_t memo_used_ = 0;
  Pickle out_;
};

}  // namespace

const PickleValue* Pickle::Find(const PickleValue& dict, absl::string_view key) const {
  for (size_t i = dict.items.size(); i >= 2; i -= 2) {
    const PickleValue& k = values[dict.items[i - 2]];
    if (k.type == Type::kString && k.text == key) return &values[dict.items[i - 1]];
  }
  return nullptr;
}

absl::StatusOr<Pickle> ParsePickle(absl::Span<const uint8_t> bytes) {
  if (bytes.size() > kMaxPickleBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("pickle of ", bytes.size(), " bytes, at most ", kMaxPickleBytes, " are read"));
  }
  return Unpickler(bytes).Run();
}

absl::string_view PickleTypeName(PickleValue::Type type) {
  static constexpr absl::string_view kNames[] = {"None",   "bool",    "int",   "float",
                                                 "string", "tuple",   "list",  "dict",
                                                 "global", "storage", "tensor"};
  return kNames[static_cast<size_t>(type)];
}

}  // namespace oscarkv
