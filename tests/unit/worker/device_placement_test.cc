#include "worker/device_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace oscarkv::worker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A sysfs of a test's own.
class FakeSysfs {
 public:
  FakeSysfs() {
    std::string pattern = (std::filesystem::temp_directory_path() / "sysfs.XXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  ~FakeSysfs() { std::filesystem::remove_all(root_); }
  const std::string& root() const { return root_; }
  void Write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = std::filesystem::path(root_) / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

 private:
  std::string root_;
};

TEST(DevicePlacement, CoresOfTheDevicesNode) {
  const FakeSysfs sysfs;
  sysfs.Write("bus/pci/devices/0000:3b:00.0/numa_node", "1\n");
  sysfs.Write("bus/pci/devices/0000:5e:00.0/numa_node", "-1\n");
  sysfs.Write("bus/pci/devices/0000:5f:00.0/numa_node", "7\n");  // a node that is not there
  sysfs.Write("bus/pci/devices/0000:60:00.0/numa_node", "many\n");
  sysfs.Write("bus/pci/devices/0000:61:00.0/numa_node", "2\n");
  sysfs.Write("devices/system/node/node1/cpulist", "4-6,12\n");
  sysfs.Write("devices/system/node/node2/cpulist", "4-x\n");
  EXPECT_THAT(*CoresNearPciDevice("0000:3B:00.0", sysfs.root()), ElementsAre(4, 5, 6, 12));
  EXPECT_THAT(*CoresNearPciDevice("0000:5e:00.0", sysfs.root()), IsEmpty());
  EXPECT_THAT(*CoresNearPciDevice("0000:5f:00.0", sysfs.root()), IsEmpty());
  EXPECT_THAT(*CoresNearPciDevice("0000:ff:00.0", sysfs.root()), IsEmpty());
  for (const char* bad : {"0000:60:00.0", "0000:61:00.0"}) {
    const auto cores = CoresNearPciDevice(bad, sysfs.root());
    EXPECT_EQ(cores.status().code(), absl::StatusCode::kDataLoss) << bad;
  }
  for (const char* bad : {"", "../../etc", "0000:3b:00.0/..", "3b", "0000:3b:00.0 ", ":.."}) {
    const auto cores = CoresNearPciDevice(bad, sysfs.root());
    EXPECT_EQ(cores.status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(DevicePlacement, CoreLists) {
  EXPECT_THAT(*ParseCoreList(""), IsEmpty());
  EXPECT_THAT(*ParseCoreList("3"), ElementsAre(3));
  EXPECT_THAT(*ParseCoreList("0-2,8,10-11"), ElementsAre(0, 1, 2, 8, 10, 11));
  EXPECT_EQ(ParseCoreList("0-4095")->size(), 4096);
  for (const char* bad : {"a", "-1", "1-", "-", "3-2", "0-4096", "0-99999999999", "1-2-3", "1;2"}) {
    const auto cores = ParseCoreList(bad);
    EXPECT_EQ(cores.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(cores.status().message()), HasSubstr("core")) << bad;
  }
}

// In a thread of its own: what it is bound to goes with it.
TEST(DevicePlacement, BindsToCoresThatItMayUse) {
  std::thread([] {
    cpu_set_t before, after;
    ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    int first = 0;
    while (!CPU_ISSET(first, &before)) ++first;
    EXPECT_EQ(*RunOnCores({}), 0);
    EXPECT_EQ(*RunOnCores({4095}), 0);  // not of this machine
    ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
    EXPECT_TRUE(CPU_EQUAL(&before, &after));
    EXPECT_EQ(*RunOnCores({first, 4095}), 1);
    ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
    EXPECT_EQ(CPU_COUNT(&after), 1);
    EXPECT_TRUE(CPU_ISSET(first, &after));
    std::thread([first] {
      cpu_set_t inherited;
      ASSERT_EQ(sched_getaffinity(0, sizeof inherited, &inherited), 0);
      EXPECT_TRUE(CPU_COUNT(&inherited) == 1 && CPU_ISSET(first, &inherited));
    }).join();
  }).join();
}

TEST(DevicePlacement, AvailableMemory) {
  const FakeSysfs files;
  files.Write("good", "MemTotal:  9 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\nBuffers: 3 kB\n");
  files.Write("none", "MemTotal:  9 kB\n");
  files.Write("bad", "MemAvailable: 5 pages\nMemAvailable: x kB\n");
  EXPECT_EQ(AvailableHostBytes(files.root() + "/good"), uint64_t{2} << 20);
  EXPECT_EQ(AvailableHostBytes(files.root() + "/none"), 0);
  EXPECT_EQ(AvailableHostBytes(files.root() + "/bad"), 0);
  EXPECT_EQ(AvailableHostBytes(files.root() + "/missing"), 0);
  files.Write("limit", "1048576\n");
  files.Write("unlimited", "max\n");
  EXPECT_EQ(AvailableHostBytes(files.root() + "/good", files.root() + "/limit"), uint64_t{1} << 20);
  for (const char* file : {"/unlimited", "/missing"})
    EXPECT_EQ(AvailableHostBytes(files.root() + "/good", files.root() + file), uint64_t{2} << 20);
  EXPECT_EQ(AvailableHostBytes(files.root() + "/bad", files.root() + "/limit"), 0);
  EXPECT_GT(AvailableHostBytes(), 0);
}

}  // namespace
}  // namespace oscarkv::worker
