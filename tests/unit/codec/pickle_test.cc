#include "codec/pickle.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/codec/pt_writer.h"

namespace oscarkv {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::LittleEndian;
using testing::PickleWriter;
using Type = PickleValue::Type;

// Parses and keeps the bytes alive.
struct Parsed {
  explicit Parsed(std::string b) : bytes(std::move(b)), pickle(ParsePickle(Bytes(bytes))) {}
  const PickleValue& root() const { return pickle->at(pickle->root); }
  std::string bytes;
  absl::StatusOr<Pickle> pickle;
};

std::string ErrorOf(const std::string& bytes) {
  const absl::Status s = ParsePickle(Bytes(bytes)).status();
  if (!s.ok()) {
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  }
  return std::string(s.message());
}

TEST(PickleTest, Integers) {
  struct Case {
    std::string op;
    int64_t value;
  };
  const std::vector<Case> cases = {
      {"K\xff", 255},
      {std::string("M\xff\xff"), 65535},
      {"J" + LittleEndian(0xffffffff, 4), -1},
      {"J" + LittleEndian(0x7fffffff, 4), 2147483647},
      {std::string("\x8a\x00", 2), 0},
      {"\x8a\x01\xff", -1},
      {std::string("\x8a\x02\xff\x00", 4), 255},
      {"\x8a\x08" + LittleEndian(INT64_MAX, 8), INT64_MAX},
      {"\x8a\x08" + LittleEndian(INT64_MIN, 8), INT64_MIN},
  };
  for (const Case& c : cases) {
    const Parsed p("\x80\x02" + c.op + ".");
    ASSERT_TRUE(p.pickle.ok()) << p.pickle.status();
    EXPECT_EQ(p.root().type, Type::kInt);
    EXPECT_EQ(p.root().integer, c.value);
  }
  EXPECT_THAT(ErrorOf("\x8a\x09" + std::string(9, '\1') + "."), HasSubstr("an integer of 9 bytes"));
}

TEST(PickleTest, ContainersAndMemo) {
  // {"a": 1, "b": [None, True], "a": ("x", 2.0)}: the last "a" counts; the list is referred to
  // again as "c".
  PickleWriter w;
  w.Proto()
      .Dict()
      .Mark()
      .Str("a")
      .Int(1)
      .Str("b")
      .Op(']')
      .Put(3)
      .Mark()
      .Op('N')
      .Op(0x88)
      .Op('e')
      .Str("c")
      .Get(3);
  w.Str("a").Str("x").Op('G').Raw(std::string(8, '\0')).Op(0x86).SetItems();
  const Parsed p(w.Stop());
  ASSERT_TRUE(p.pickle.ok()) << p.pickle.status();
  const PickleValue* a = p.pickle->Find(p.root(), "a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->type, Type::kTuple);
  EXPECT_EQ(p.pickle->at(a->items[0]).text, "x");
  EXPECT_EQ(p.pickle->at(a->items[1]).type, Type::kFloat);
  const PickleValue* b = p.pickle->Find(p.root(), "b");
  ASSERT_NE(b, nullptr);
  ASSERT_EQ(b->items.size(), 2u);
  EXPECT_EQ(p.pickle->at(b->items[0]).type, Type::kNone);
  EXPECT_EQ(p.pickle->at(b->items[1]).integer, 1);
  EXPECT_EQ(p.pickle->Find(p.root(), "c"), b);
  EXPECT_EQ(p.pickle->Find(p.root(), "d"), nullptr);
}

TEST(PickleTest, Protocol4) {
  // As pickle.dumps({"layers": OrderedDict()}, 4) frames and memoizes.
  std::string body =
      "}\x94(\x8c\x06layers\x94\x8c\x0b"
      "collections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94u.";
  const Parsed p("\x80\x04\x95" + LittleEndian(body.size(), 8) + body);
  ASSERT_TRUE(p.pickle.ok()) << p.pickle.status();
  EXPECT_EQ(p.pickle->Find(p.root(), "layers")->type, Type::kDict);
}

TEST(PickleTest, Tensor) {
  const Parsed p(
      PickleWriter().Proto().Tensor("BFloat16Storage", "7", 24, 4, {2, 3}, {1, 4}).Stop());
  ASSERT_TRUE(p.pickle.ok()) << p.pickle.status();
  ASSERT_EQ(p.root().type, Type::kTensor);
  const PickleTensor& t = p.pickle->tensors[p.root().integer];
  EXPECT_EQ(t.offset, 4);
  EXPECT_EQ(t.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(t.strides, (std::vector<int64_t>{1, 4}));
  const PickleStorage& s = p.pickle->storages[t.storage];
  EXPECT_EQ(s.type, StorageType::kBf16);
  EXPECT_EQ(s.key, "7");
  EXPECT_EQ(s.elements, 24);
}

TEST(PickleTest, TensorsStayInsideTheirStorage) {
  struct Case {
    int64_t elements, offset;
    std::vector<int64_t> shape, strides;
    bool ok;
  };
  constexpr int64_t kBig = INT64_MAX;
  const std::vector<Case> cases = {
      {16, 0, {4, 4}, {4, 1}, true},
      {16, 1, {4, 4}, {4, 1}, false},
      {17, 1, {4, 4}, {4, 1}, true},
      {16, 0, {4, 4}, {1, 4}, true},
      {16, 0, {4, 4}, {5, 1}, false},
      {1, 0, {1000, 1000, 1000}, {0, 0, 0}, true},
      {1, 0, {}, {}, true},
      {0, 0, {}, {}, false},
      {0, 0, {0, 5}, {5, 1}, true},
      {16, kBig, {1}, {1}, false},
      {kBig, 0, {kBig, kBig, kBig}, {kBig, kBig, kBig}, false},
      {16, 0, {5, 2}, {int64_t{1} << 62, int64_t{1} << 62}, false},  // wraps to 0 in 64 bits
  };
  for (const Case& c : cases) {
    const std::string error =
        ErrorOf(PickleWriter()
                    .Proto()
                    .Tensor("FloatStorage", "0", c.elements, c.offset, c.shape, c.strides)
                    .Stop());
    EXPECT_EQ(error.empty(), c.ok) << c.elements << " " << error;
    if (!c.ok) {
      EXPECT_THAT(error, HasSubstr("reaches beyond its storage"));
    }
  }
}

TEST(PickleTest, NothingIsEverCalled) {
  const auto call = [](std::string_view module, std::string_view name) {
    return PickleWriter()
        .Proto()
        .Global(module, name)
        .Mark()
        .Str("touch /tmp/owned")
        .Tuple()
        .Reduce()
        .Stop();
  };
  EXPECT_THAT(ErrorOf(call("os", "system")),
              HasSubstr("byte 2: global \"os.system\" is not allowed"));
  EXPECT_THAT(ErrorOf(call("builtins", "eval")), HasSubstr("builtins.eval"));
  EXPECT_THAT(ErrorOf(call("torch", "load")), HasSubstr("torch.load"));
  EXPECT_THAT(ErrorOf(call("torch._utils", "_rebuild_tensor_v2.__globals__")),
              HasSubstr("not allowed"));
  EXPECT_THAT(ErrorOf(call(std::string(5000, 'a'), "b\x01")), HasSubstr("aaa...\" is not allowed"));
  // The same through STACK_GLOBAL, whose module and name are ordinary strings.
  EXPECT_THAT(ErrorOf(PickleWriter().Proto(4).Str("posix").Str("system").Op(0x93).Stop()),
              HasSubstr("posix.system"));
  EXPECT_THAT(ErrorOf(PickleWriter().Proto(4).Str("posix").Int(1).Op(0x93).Stop()),
              HasSubstr("without two strings"));
  // Calling what may not be called.
  EXPECT_THAT(ErrorOf(call("torch", "FloatStorage")), HasSubstr("REDUCE of a global"));
  EXPECT_THAT(ErrorOf(PickleWriter().Proto().Str("s").Op(')').Reduce().Stop()),
              HasSubstr("REDUCE of a string"));
  EXPECT_THAT(ErrorOf(call("collections", "OrderedDict")), HasSubstr("OrderedDict with arguments"));
  // Other ways to construct objects.
  for (const auto& [op, name] : std::vector<std::pair<int, std::string>>{{'b', "BUILD"},
                                                                         {'i', "INST"},
                                                                         {'o', "OBJ"},
                                                                         {0x81, "NEWOBJ"},
                                                                         {0x92, "NEWOBJ_EX"},
                                                                         {0x82, "EXT1"},
                                                                         {0xff, "unknown"}}) {
    EXPECT_THAT(ErrorOf(PickleWriter().Proto().Dict().Dict().Op(op).Stop()),
                HasSubstr(absl::StrCat("(", name, ") is not allowed")));
  }
}

TEST(PickleTest, BrokenInputsAreNamed) {
  struct Case {
    std::string bytes;
    const char* error;
  };
  const auto w = [] { return PickleWriter().Proto(); };
  const std::vector<Case> cases = {
      {"", "ends without STOP"},
      {"\x80\x02", "ends without STOP"},
      {"\x80\x01N.", "protocol 1, 2 to 5 are supported"},
      {"\x80\x06N.", "protocol 6"},
      {w().Stop(), "STOP with 0 values"},
      {w().Int(1).Int(2).Stop(), "STOP with 2 values"},
      {w().Mark().Stop(), "STOP with 0 values"},
      {w().Int(1).Mark().Stop(), "STOP with 1 values"},
      {"X" + LittleEndian(0xffffffff, 4) + "a.", "wants 4294967295 bytes, 2 are left"},
      {"\x8d" + LittleEndian(~0ull, 8) + "a.", "wants 18446744073709551615 bytes, 2 are left"},
      {"\x95" + LittleEndian(100, 8) + "N.", "FRAME of 100 bytes, 2 are left"},
      {w().Get(0).Stop(), "memo index 0 was never set"},
      {w().Int(1).Raw("r").Raw(LittleEndian(0xffffffff, 4)).Stop(), "memo index 4294967295, below"},
      {w().Raw("j").Raw(LittleEndian(0xffffffff, 4)).Stop(), "memo index 4294967295 was never set"},
      {w().Put(1).Stop(), "needs 1 values, the stack has 0"},
      {w().Tuple().Stop(), "no MARK"},
      {w().SetItems().Stop(), "no MARK"},
      {w().Int(1).Op(0x87).Stop(), "needs 3 values, the stack has 1"},
      {w().Mark().Int(1).Int(2).SetItems().Stop(), "needs 1 values, the stack has 0"},
      {w().Dict().Mark().Int(1).SetItems().Stop(), "a dict key without a value"},
      {w().Int(1).Int(2).Int(3).SetItem().Stop(), "adds items to a int"},
      {w().Dict().Int(3).Op('a').Stop(), "adds items to a dict"},
      {w().Dict().Mark().Int(3).Op(0x85).SetItem().Stop(),
       "needs 2 values, the stack has 1"},  // not below the mark
      {w().Int(1).Op('Q').Stop(), "persistent id is not"},
      {w().Mark().Str("storage").Str("x").Str("0").Str("cpu").Int(3).Tuple().Op('Q').Stop(),
       "no storage class"},
      {w().Mark()
           .Str("storage")
           .Global("torch", "FloatStorage")
           .Str("0")
           .Str("cpu")
           .Int(-3)
           .Tuple()
           .Op('Q')
           .Stop(),
       "storage of -3"},
      {w().Mark()
           .Str("module")
           .Global("torch", "FloatStorage")
           .Str("0")
           .Str("cpu")
           .Int(3)
           .Tuple()
           .Op('Q')
           .Stop(),
       "persistent id"},
      {w().Global("torch._utils", "_rebuild_tensor_v2").Op(')').Reduce().Stop(),
       "tensor of 0 arguments"},
      {w().Global("torch._utils", "_rebuild_tensor_v2").Dict().Reduce().Stop(),
       "arguments that are no tuple"},
      {w().Global("torch._utils", "_rebuild_tensor_v2").Ints({1, 2, 3, 4, 5, 6}).Reduce().Stop(),
       "tensor of a int"},
      {"ctorch\nFloatStorage", "a line without end"},
      {w().Tensor("FloatStorage", "0", 16, 0, {4, -4}, {4, 1}).Stop(), "an entry that is no size"},
      {w().Tensor("FloatStorage", "0", 16, -1, {4, 4}, {4, 1}).Stop(), "without a storage offset"},
      {w().Tensor("FloatStorage", "0", 16, 0, {1, 1, 4, 4}, {1, 1, 4, 1}).Stop(),
       "no tuple of at most 3"},
      {w().Tensor("FloatStorage", "0", 16, 0, {4, 4}, {1}).Stop(), "2 dimensions and 1 strides"},
      {w().Tensor("LongStorage", "0", 16, 0, {4, 4}, {4, 1}).Stop(), "torch.LongStorage"},
  };
  for (size_t i = 0; i < cases.size(); ++i)
    EXPECT_THAT(ErrorOf(cases[i].bytes), HasSubstr(cases[i].error)) << "case " << i;
}

TEST(PickleTest, EveryTruncationIsAnError) {
  const std::string bytes =
      testing::WriteRotationPickle({2, {{0, true, {}, StorageType::kF32, 0, {0, 4}, {}, false}}});
  ASSERT_EQ(ErrorOf(bytes), "");
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_NE(ErrorOf(bytes.substr(0, n)), "") << n;
}

TEST(PickleTest, NestingAndBombsAreHarmless) {
  // 2 million levels of tuples would end any recursive reader; here they end at the bound on
  // values.
  PickleWriter deep;
  deep.Proto().Op(')');
  for (int i = 0; i < 2000000; ++i) deep.Op(0x85);
  EXPECT_THAT(ErrorOf(deep.Stop()), HasSubstr("more than 1048576 values"));
  // Half a million levels are read, and destroyed, without recursion.
  PickleWriter nested;
  nested.Proto().Op(')');
  for (int i = 0; i < 500000; ++i) nested.Op(0x85);
  EXPECT_EQ(ErrorOf(nested.Stop()), "");
  // A billion laughs: each tuple holds the one before twice; 2^100 leaves if it were unfolded.
  PickleWriter laughs;
  laughs.Proto().Op(')').Put(0);
  for (int i = 0; i < 100; ++i) laughs.Get(i).Get(i).Op(0x86).Put(i + 1);
  laughs.Mark();
  EXPECT_THAT(ErrorOf(laughs.Stop()), HasSubstr("STOP with"));
  // A dict that contains itself.
  EXPECT_EQ(ErrorOf(PickleWriter().Proto().Dict().Put(0).Str("self").Get(0).SetItem().Stop()), "");
  // Marks alone.
  EXPECT_THAT(ErrorOf(std::string(1000000, '(')), HasSubstr("ends without STOP"));
  // Too large at all.
  EXPECT_THAT(ErrorOf(std::string(kMaxPickleBytes + 1, 'N')),
              HasSubstr("at most 8388608 are read"));
}

}  // namespace
}  // namespace oscarkv
