#include "codec/zip_reader.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/codec/pt_writer.h"

namespace oscarkv {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::LittleEndian;
using testing::WriteZip;
using testing::ZipItem;
using testing::ZipStyle;

const std::string kText(1000, 'x');

std::string ReadText(const ZipReader& zip, const std::string& name, uint64_t max_bytes = 1 << 20) {
  std::vector<uint8_t> buffer;
  const auto bytes = zip.Read(name, max_bytes, &buffer);
  if (!bytes.ok()) return std::string(bytes.status().message());
  return std::string(bytes->begin(), bytes->end());
}

TEST(ZipReaderTest, ReadsStoredAndDeflatedEntriesOfEveryStyle) {
  const std::vector<ZipItem> items = {{"a", "stored", false},
                                      {"b/c", kText, true},
                                      {"empty", "", false},
                                      {"empty deflated", "", true}};
  for (const ZipStyle& style :
       {ZipStyle{true, true, ""}, ZipStyle{false, false, ""}, ZipStyle{true, false, "a comment"},
        ZipStyle{false, true, std::string(65535, 'c')},
        ZipStyle{true, true, "PK\5\6 in a comment"}}) {
    const std::string file = WriteZip(items, style);
    const auto zip = ZipReader::Open(Bytes(file));
    ASSERT_TRUE(zip.ok()) << zip.status();
    EXPECT_EQ(zip->entries().size(), items.size());
    for (const ZipItem& item : items) EXPECT_EQ(ReadText(*zip, item.name), item.data) << item.name;
    EXPECT_THAT(ReadText(*zip, "absent"), HasSubstr("has no entry absent"));
  }
}

TEST(ZipReaderTest, StoredEntriesAreViews) {
  const std::string file = WriteZip({{"a", "stored"}});
  const auto zip = ZipReader::Open(Bytes(file));
  std::vector<uint8_t> buffer;
  const auto bytes = zip->Read("a", 100, &buffer);
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(reinterpret_cast<const char*>(bytes->data()), file.data() + file.find("stored"));
  EXPECT_TRUE(buffer.empty());
}

TEST(ZipReaderTest, TooLargeIsRefusedBeforeReading) {
  const std::string file = WriteZip({{"stored", kText, false}, {"deflated", kText, true}});
  const auto zip = ZipReader::Open(Bytes(file));
  for (const char* name : {"stored", "deflated"}) {
    EXPECT_EQ(ReadText(*zip, name, 1000), kText);
    EXPECT_THAT(ReadText(*zip, name, 999), HasSubstr("1000 bytes, at most 999 are expected"));
  }
}

TEST(ZipReaderTest, EveryTruncationIsAnError) {
  for (const bool zip64 : {false, true}) {
    const std::string file =
        WriteZip({{"a", "stored"}, {"b", kText, true}}, {true, zip64, "comment"});
    for (size_t n = 0; n < file.size(); ++n) {
      const auto zip = ZipReader::Open(Bytes(file.substr(0, n)));
      EXPECT_EQ(zip.status().code(), absl::StatusCode::kInvalidArgument) << n;
    }
  }
}

// One entry "name", then the directory: changes at known places.
struct Damage {
  const char* what;
  bool deflate;
  std::function<void(std::string*)> change;
  const char* error;
};

size_t Central(const std::string& f) {
  return f.find("PK\1\2");
}
size_t End(const std::string& f) {
  return f.rfind("PK\5\6");
}
void Patch(std::string* f, size_t at, std::string bytes) {
  f->replace(at, bytes.size(), bytes);
}

TEST(ZipReaderTest, DamageIsNamed) {
  const std::vector<Damage> cases = {
      {"data", false, [](std::string* f) { (*f)[f->find("xxx")] = 'y'; }, "CRC-32 is"},
      {"deflated data", true, [](std::string* f) { (*f)[40] ^= 0xff; }, "deflated data is damaged"},
      {"local signature", false, [](std::string* f) { (*f)[0] = 'Q'; },
       "no local header of that name at 0"},
      {"local name", false, [](std::string* f) { (*f)[30] = 'Q'; },
       "no local header of that name at 0"},
      {"local method", false, [](std::string* f) { (*f)[8] = 8; }, "local header contradicts"},
      {"local extra", false, [](std::string* f) { Patch(f, 28, "\xff\xff"); },
       "no local header of that name"},
      {"encrypted", false, [](std::string* f) { (*f)[6] |= 1, (*f)[Central(*f) + 8] |= 1; },
       "encrypted"},
      {"method", false, [](std::string* f) { (*f)[8] = (*f)[Central(*f) + 10] = 12; },
       "unknown compression 12"},
      {"compressed size", false,
       [](std::string* f) { Patch(f, Central(*f) + 20, LittleEndian(5000, 4)); },
       "reaches into the directory"},
      {"size", false, [](std::string* f) { Patch(f, Central(*f) + 24, LittleEndian(5, 4)); },
       "stored with 1000 bytes, but 5 long"},
      {"deflated longer", true,
       [](std::string* f) { Patch(f, Central(*f) + 24, LittleEndian(999, 4)); },
       "not the 999 bytes"},
      {"deflated shorter", true,
       [](std::string* f) { Patch(f, Central(*f) + 24, LittleEndian(1001, 4)); },
       "not the 1001 bytes"},
      {"bomb", true, [](std::string* f) { Patch(f, Central(*f) + 24, LittleEndian(1 << 20, 4)); },
       "impossible compression ratio"},
      {"zip64 size", false,
       [](std::string* f) { Patch(f, Central(*f) + 24, LittleEndian(0xffffffff, 4)); }, "zip64"},
      {"offset", false,
       [](std::string* f) { Patch(f, Central(*f) + 42, LittleEndian(0xfffffff0, 4)); },
       "outside the entries"},
      {"central signature", false, [](std::string* f) { (*f)[Central(*f) + 1] = 'Q'; },
       "directory entry 0 of 1 is damaged"},
      {"name length", false,
       [](std::string* f) { Patch(f, Central(*f) + 28, LittleEndian(60000, 2)); },
       "reaches beyond the directory"},
      {"no name", false, [](std::string* f) { Patch(f, Central(*f) + 28, LittleEndian(0, 2)); },
       "name of 0 bytes"},
      {"count 2", false, [](std::string* f) { Patch(f, End(*f) + 8, LittleEndian(0x00020002, 4)); },
       "directory entry 1 of 2 is damaged"},
      {"count 0", false, [](std::string* f) { Patch(f, End(*f) + 8, LittleEndian(0, 4)); },
       "bytes behind its 0 entries"},
      {"disks", false, [](std::string* f) { Patch(f, End(*f) + 4, LittleEndian(1, 2)); },
       "of several disks"},
      {"zip64 directory", false,
       [](std::string* f) { Patch(f, End(*f) + 16, LittleEndian(0xffffffff, 4)); },
       "needs zip64 fields for its directory"},
      {"directory size", false,
       [](std::string* f) { Patch(f, End(*f) + 12, LittleEndian(0xfffffff0, 4)); },
       "overlaps its end record"},
      {"comment", false, [](std::string* f) { Patch(f, End(*f) + 20, LittleEndian(7, 2)); },
       "no end-of-directory record"},
  };
  for (const Damage& c : cases) {
    std::string file = WriteZip({{"name", kText, c.deflate}}, {true, false, ""});
    c.change(&file);
    const auto zip = ZipReader::Open(Bytes(file));
    const std::string error = zip.ok() ? ReadText(*zip, zip->entries().begin()->first, 2 << 20)
                                       : std::string(zip.status().message());
    EXPECT_THAT(error, HasSubstr(c.error)) << c.what;
  }
}

TEST(ZipReaderTest, RepeatedNameIsAnError) {
  const std::string file = WriteZip({{"a", "1"}, {"a", "2"}});
  EXPECT_THAT(std::string(ZipReader::Open(Bytes(file)).status().message()),
              HasSubstr("repeats a name"));
}

}  // namespace
}  // namespace oscarkv
