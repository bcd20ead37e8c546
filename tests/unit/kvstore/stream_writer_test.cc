// Streamed puts: what travels when, and that nothing reads the caller's memory afterwards.
#include "kvstore/client/stream_writer.h"

#include <gtest/gtest.h>

#include <thread>

#include "support.h"

namespace oscarkv {
namespace {

using kvtest::Key;

Time In(Duration d) {
  return SteadyClock::Get()->Now() + d;
}

// Keeps each stream open until the test ends it.
class HoldingStub final : public KvStub {
 public:
  struct Stream {
    std::vector<WriteSource> sources;
    WriteDone done;
  };
  void Call(const kv::KvRequest&, Time, Done done) override {
    done(absl::UnimplementedError("only streams"));
  }
  void ReadBlocks(uint64_t, std::vector<ReadTarget>, Time, ReadDone done) override {
    done(absl::UnimplementedError("only writes"));
  }
  void WriteBlocks(uint64_t, std::vector<WriteSource> sources, Time, CallCanceller* canceller,
                   WriteDone done) override {
    canceller->Arm([this] {
      MutexLock lock(mu_);
      cancelled_ = true;
      changed_.NotifyAll();
    });
    MutexLock lock(mu_);
    streams_.push_back({std::move(sources), std::move(done)});
  }
  size_t streams() {
    MutexLock lock(mu_);
    return streams_.size();
  }
  size_t pieces(size_t stream) {
    MutexLock lock(mu_);
    return streams_[stream].sources.size();
  }
  void End(size_t stream, absl::StatusOr<WriteErrors> result) {
    WriteDone done;
    {
      MutexLock lock(mu_);
      done = streams_[stream].done;
    }
    done(std::move(result));
  }
  void AwaitCancel() {
    MutexLock lock(mu_);
    while (!cancelled_) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<Stream> streams_ GUARDED_BY(mu_);
  bool cancelled_ GUARDED_BY(mu_) = false;
};

class StreamWriterTest : public testing::Test {
 protected:
  void Send(int block) { writer_->Send({{Key(block), 1, 0}, absl::MakeConstSpan(bytes_)}); }
  const std::vector<uint8_t> bytes_ = std::vector<uint8_t>(100, 7);
  const std::shared_ptr<HoldingStub> stub_ = std::make_shared<HoldingStub>();
  std::unique_ptr<StreamWriter> writer_ = std::make_unique<StreamWriter>(
      std::make_shared<Link>(stub_, kv::OpenSessionResponse{}), In(std::chrono::hours(1)));
};

TEST_F(StreamWriterTest, BytesTravelWhenTheyAreWritten) {
  Send(1);
  ASSERT_EQ(stub_->streams(), 1u) << "at once, not at the commit";
  Send(2);
  Send(3);
  EXPECT_EQ(stub_->streams(), 1u) << "one at a time";
  stub_->End(0, KvStub::WriteErrors{{Key(1), absl::NotFoundError("expired")}});
  ASSERT_EQ(stub_->streams(), 2u);
  EXPECT_EQ(stub_->pieces(1), 2u) << "what came meanwhile, together";
  stub_->End(1, KvStub::WriteErrors{{Key(3), absl::InvalidArgumentError("too long")}});
  const StreamWriter::Result result = writer_->Finish(In(std::chrono::hours(1)));
  EXPECT_TRUE(result.whole.ok()) << result.whole;
  ASSERT_EQ(result.errors.size(), 2u);
  EXPECT_EQ(result.errors[0].first, Key(1));
  EXPECT_EQ(result.errors[1].first, Key(3));
  Send(4);
  EXPECT_EQ(stub_->streams(), 3u);
  stub_->End(2, KvStub::WriteErrors{});
  EXPECT_TRUE(writer_->Finish(In(std::chrono::hours(1))).errors.empty()) << "a new round";
}

TEST_F(StreamWriterTest, ABrokenStreamEndsTheRound) {
  Send(1);
  Send(2);
  stub_->End(0, absl::UnavailableError("gone"));
  Send(3);
  EXPECT_EQ(stub_->streams(), 1u) << "the rest is not sent";
  EXPECT_EQ(writer_->Finish(In(std::chrono::hours(1))).whole.code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(StreamWriterTest, FinishGivesUpAtItsDeadlineAndWaitsForTheEnd) {
  Send(1);
  Send(2);
  std::thread node([this] {
    stub_->AwaitCancel();
    stub_->End(0, absl::CancelledError("as asked"));
  });
  EXPECT_EQ(writer_->Finish(In(Duration(0))).whole.code(), absl::StatusCode::kDeadlineExceeded);
  node.join();
  EXPECT_EQ(stub_->streams(), 1u);
}

TEST_F(StreamWriterTest, DestroyingItEndsWhatIsUnderWay) {
  Send(1);
  std::thread node([this] {
    stub_->AwaitCancel();
    stub_->End(0, KvStub::WriteErrors{});  // it went through all the same
  });
  writer_.reset();
  node.join();
}

}  // namespace
}  // namespace oscarkv
