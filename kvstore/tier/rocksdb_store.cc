#include "kvstore/tier/rocksdb_store.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr char kMeta = 'm', kData = 'd';  // first byte of a record's two keys
constexpr size_t kKeyBytes = 1 + sizeof(TenantDigest) + 32;
constexpr uint64_t kBlobFileBytes = uint64_t{256} << 20;
// What dropping a generation writes is less: it may use some of the reserve to make room.
constexpr uint64_t kReserveShareToDrop = 16;

std::string DiskKey(char part, const TierKey& key) {
  std::string out(1, part);
  out.append(reinterpret_cast<const char*>(key.tenant.data()), key.tenant.size());
  out.append(reinterpret_cast<const char*>(key.key.bytes.data()), key.key.bytes.size());
  return out;
}

absl::Status ToAbsl(const rocksdb::Status& s, absl::string_view what) {
  if (s.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", s.ToString());
  if (s.IsNotFound()) return absl::NotFoundError(message);
  if (s.IsCorruption()) return absl::DataLossError(message);
  if (s.IsNoSpace()) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

std::string GenerationName(uint64_t generation) {
  return absl::StrFormat("g%016x", generation);
}
bool ParseGenerationName(const std::string& name, uint64_t* generation) {
  return name.size() == 17 && name[0] == 'g' && absl::SimpleHexAtoi(name.substr(1), generation);
}

rocksdb::DBOptions DbOptions() {
  rocksdb::DBOptions o;
  o.create_if_missing = true;
  o.max_background_jobs = 2;
  o.max_open_files = 512;
  o.allow_fallocate = false;   // what is free is what can be written
  o.bytes_per_sync = 1 << 20;  // no burst of write-back at the end of a file
  o.keep_log_file_num = 2;
  o.max_log_file_size = 4 << 20;
  o.info_log_level = rocksdb::WARN_LEVEL;
  o.stats_dump_period_sec = 0;
  o.stats_persist_period_sec = 0;
  return o;
}

rocksdb::ColumnFamilyOptions GenerationOptions(uint64_t memtable_bytes) {
  rocksdb::ColumnFamilyOptions o;
  o.enable_blob_files = true;
  o.min_blob_size = 4096;
  o.blob_file_size = kBlobFileBytes;
  o.compression = rocksdb::kNoCompression;  // 2-bit codes do not compress
  o.blob_compression_type = rocksdb::kNoCompression;
  o.write_buffer_size = memtable_bytes;
  o.max_write_buffer_number = 3;
  static const std::shared_ptr<rocksdb::Cache> cache = rocksdb::NewLRUCache(32 << 20);
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  o.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return o;
}

class RocksDbStore final : public DiskStore {
 public:
  using Family = std::shared_ptr<rocksdb::ColumnFamilyHandle>;

  RocksDbStore(std::unique_ptr<rocksdb::DB> db, rocksdb::ColumnFamilyHandle* base,
               const std::map<uint64_t, rocksdb::ColumnFamilyHandle*>& found,
               const RocksDbStoreOptions& options)
      : options_(options), db_(std::move(db)), base_(Own(base)) {
    for (const auto& [generation, handle] : found) families_[generation] = Own(handle);
  }
  ~RocksDbStore() override {
    {
      MutexLock lock(mu_);
      families_.clear();
    }
    base_.reset();
    db_->Close();
  }

  absl::StatusOr<uint64_t> NewGeneration() override {
    RETURN_IF_ERROR(CheckRoom(0, options_.reserve_bytes));
    uint64_t generation = 1;
    {
      MutexLock lock(mu_);
      if (!families_.empty()) generation = families_.rbegin()->first + 1;
    }
    rocksdb::ColumnFamilyHandle* handle = nullptr;
    RETURN_IF_ERROR(ToAbsl(db_->CreateColumnFamily(GenerationOptions(options_.memtable_bytes),
                                                   GenerationName(generation), &handle),
                           "new generation"));
    MutexLock lock(mu_);
    families_[generation] = Own(handle);
    return generation;
  }

  absl::Status DropGeneration(uint64_t generation) override {
    RETURN_IF_ERROR(CheckRoom(0, options_.reserve_bytes / kReserveShareToDrop));
    ASSIGN_OR_RETURN(const Family family, Find(generation));
    RETURN_IF_ERROR(ToAbsl(db_->DropColumnFamily(family.get()), "drop generation"));
    MutexLock lock(mu_);
    families_.erase(generation);  // the files go with the last read that uses them
    return absl::OkStatus();
  }

  std::vector<uint64_t> Generations() const override {
    MutexLock lock(mu_);
    std::vector<uint64_t> out;
    for (const auto& [generation, family] : families_) out.push_back(generation);
    return out;
  }

  absl::Status Put(uint64_t generation, const TierKey& key, absl::string_view meta,
                   absl::Span<const uint8_t> data) override {
    const uint64_t bytes = meta.size() + data.size();
    RETURN_IF_ERROR(CheckRoom(unflushed_ + bytes, options_.reserve_bytes));
    ASSIGN_OR_RETURN(const Family family, Find(generation));
    // One batch of one family: its parts reach the disk together.
    rocksdb::WriteBatch batch;
    const std::string data_key = DiskKey(kData, key);
    const rocksdb::Slice data_slice(reinterpret_cast<const char*>(data.data()), data.size());
    RETURN_IF_ERROR(ToAbsl(batch.Put(family.get(), data_key, data_slice), "write"));
    RETURN_IF_ERROR(
        ToAbsl(batch.Put(family.get(), DiskKey(kMeta, key), {meta.data(), meta.size()}), "write"));
    unflushed_ += bytes;
    return ToAbsl(db_->Write(Unlogged(), &batch), "write");
  }

  absl::StatusOr<DiskRecord> Get(uint64_t generation, const TierKey& key) override {
    // Holds the files as long as the bytes are used.
    struct Owner {
      Family family;
      rocksdb::PinnableSlice data;
    };
    auto owner = std::make_shared<Owner>();
    ASSIGN_OR_RETURN(owner->family, Find(generation));
    rocksdb::ReadOptions read;
    read.fill_cache = false;
    DiskRecord record;
    RETURN_IF_ERROR(
        ToAbsl(db_->Get(read, owner->family.get(), DiskKey(kMeta, key), &record.meta), "read"));
    RETURN_IF_ERROR(
        ToAbsl(db_->Get(read, owner->family.get(), DiskKey(kData, key), &owner->data), "read"));
    record.data = {reinterpret_cast<const uint8_t*>(owner->data.data()), owner->data.size()};
    record.owner = std::move(owner);
    return record;
  }

  absl::Status Erase(uint64_t generation, const TierKey& key) override {
    ASSIGN_OR_RETURN(const Family family, Find(generation));
    rocksdb::WriteBatch batch;
    RETURN_IF_ERROR(ToAbsl(batch.Delete(family.get(), DiskKey(kMeta, key)), "erase"));
    RETURN_IF_ERROR(ToAbsl(batch.Delete(family.get(), DiskKey(kData, key)), "erase"));
    return ToAbsl(db_->Write(Unlogged(), &batch), "erase");
  }

  absl::Status Flush() override {
    RETURN_IF_ERROR(CheckRoom(unflushed_, options_.reserve_bytes));
    // Ends a state of failure; without one it does nothing.
    RETURN_IF_ERROR(ToAbsl(db_->Resume(), "resume"));
    std::vector<Family> families;
    {
      MutexLock lock(mu_);
      for (const auto& [generation, family] : families_) families.push_back(family);
    }
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    for (const Family& family : families) handles.push_back(family.get());
    if (handles.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(ToAbsl(db_->Flush(rocksdb::FlushOptions(), handles), "flush"));
    unflushed_ = 0;
    return absl::OkStatus();
  }

  absl::Status ForEach(uint64_t generation, const Visitor& visit) override {
    ASSIGN_OR_RETURN(const Family family, Find(generation));
    rocksdb::ReadOptions read;
    read.fill_cache = false;
    const std::string end(1, kMeta + 1);
    const rocksdb::Slice end_slice(end);
    read.iterate_upper_bound = &end_slice;
    const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(read, family.get()));
    for (it->Seek(rocksdb::Slice(&kMeta, 1)); it->Valid(); it->Next()) {
      const rocksdb::Slice k = it->key();
      if (k.size() != kKeyBytes) continue;
      TierKey key;
      std::copy_n(k.data() + 1, key.tenant.size(), key.tenant.begin());
      std::copy_n(k.data() + 1 + key.tenant.size(), 32, key.key.bytes.begin());
      visit(key, absl::string_view(it->value().data(), it->value().size()));
    }
    return ToAbsl(it->status(), "scan");
  }

 private:
  static rocksdb::WriteOptions Unlogged() {
    rocksdb::WriteOptions o;
    o.disableWAL = true;
    return o;
  }
  Family Own(rocksdb::ColumnFamilyHandle* handle) {
    return Family(handle, [db = db_.get()](rocksdb::ColumnFamilyHandle* h) {
      db->DestroyColumnFamilyHandle(h);
    });
  }
  // That `bytes` can be written and `reserve` stays free.
  absl::Status CheckRoom(uint64_t bytes, uint64_t reserve) const {
    std::error_code error;
    const std::filesystem::space_info space = std::filesystem::space(options_.path, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("space of ", options_.path, ": ", error.message()));
    }
    if (space.available >= bytes && space.available - bytes >= reserve) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("the disk of ", options_.path, " has ", static_cast<uint64_t>(space.available),
                     " bytes free: expected ", bytes, " to write and ", reserve, " in reserve"));
  }
  absl::StatusOr<Family> Find(uint64_t generation) const {
    MutexLock lock(mu_);
    const auto it = families_.find(generation);
    if (it == families_.end()) return absl::NotFoundError("the generation was dropped");
    return it->second;
  }

  const RocksDbStoreOptions options_;
  uint64_t unflushed_ = 0;  // bytes put since the last flush, of the thread that puts and flushes
  const std::unique_ptr<rocksdb::DB> db_;
  Family base_;
  mutable Mutex mu_;
  std::map<uint64_t, Family> families_ GUARDED_BY(mu_);
};

absl::StatusOr<std::unique_ptr<DiskStore>> OpenOnce(const RocksDbStoreOptions& options) {
  const rocksdb::DBOptions db_options = DbOptions();
  std::vector<std::string> names;
  // Fails where there is nothing yet.
  if (!rocksdb::DB::ListColumnFamilies(db_options, options.path, &names).ok())
    names = {rocksdb::kDefaultColumnFamilyName};
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (const std::string& name : names)
    families.emplace_back(name, GenerationOptions(options.memtable_bytes));
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* raw = nullptr;
  const rocksdb::Status opened =
      rocksdb::DB::Open(db_options, options.path, families, &handles, &raw);
  RETURN_IF_ERROR(ToAbsl(opened, "open"));
  std::unique_ptr<rocksdb::DB> db(raw);
  rocksdb::ColumnFamilyHandle* base = nullptr;
  std::map<uint64_t, rocksdb::ColumnFamilyHandle*> found;
  for (rocksdb::ColumnFamilyHandle* handle : handles) {
    uint64_t generation = 0;
    if (ParseGenerationName(handle->GetName(), &generation)) {
      found[generation] = handle;
    } else if (handle->GetName() == rocksdb::kDefaultColumnFamilyName) {
      base = handle;
    } else {
      db->DestroyColumnFamilyHandle(handle);
    }
  }
  return std::make_unique<RocksDbStore>(std::move(db), base, std::move(found), options);
}

// An empty folder, or one that RocksDB wrote.
absl::Status CheckFolder(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::create_directories(path, error);
  if (error)
    return absl::UnavailableError(absl::StrCat("cannot make the folder: ", error.message()));
  const fs::directory_iterator files(path, error);
  if (error)
    return absl::UnavailableError(absl::StrCat("cannot read the folder: ", error.message()));
  bool foreign = false, ours = false;
  for (const fs::directory_entry& file : files) {
    const std::string name = file.path().filename().string();
    ours |= name == "CURRENT" || name == "IDENTITY" || name == "LOCK";
    foreign |= name != "lost+found";
  }
  if (ours || !foreign) return absl::OkStatus();
  return absl::InvalidArgumentError("the folder holds other files; expected an empty one");
}

}  // namespace

absl::StatusOr<std::unique_ptr<DiskStore>> OpenRocksDbStore(const RocksDbStoreOptions& options) {
  RETURN_IF_ERROR(CheckFolder(options.path));
  absl::StatusOr<std::unique_ptr<DiskStore>> store = OpenOnce(options);
  if (store.ok()) return store;
  if (absl::StrContains(store.status().message(), "lock")) {
    return absl::FailedPreconditionError(
        absl::StrCat("another process has the folder open: ", store.status().message()));
  }
  if (!absl::IsDataLoss(store.status())) return store;
  LogError("the content of the SSD tier cannot be opened and is thrown away",
           {{"path", options.path}, {"error", std::string(store.status().message())}});
  RETURN_IF_ERROR(ToAbsl(rocksdb::DestroyDB(options.path, rocksdb::Options()), "destroy"));
  return OpenOnce(options);
}

}  // namespace oscarkv
