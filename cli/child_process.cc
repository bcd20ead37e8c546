#include "cli/child_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/role.h"
#include "common/log.h"

namespace oscarkv::cli {
namespace {

constexpr timespec kPollInterval = {0, 10'000'000};

// The ports in a ready file, none when it is not there yet: it appears whole.
RolePorts ReadPorts(const std::string& path) {
  RolePorts ports;
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    absl::string_view v = line;
    int port = 0;
    if (absl::ConsumePrefix(&v, "grpc=") && absl::SimpleAtoi(v, &port)) ports.grpc = port;
    if (absl::ConsumePrefix(&v, "http=") && absl::SimpleAtoi(v, &port)) ports.http = port;
  }
  return ports;
}

[[noreturn]] void Exec(const std::vector<std::string>& args, int log_fd, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  if (log_fd >= 0) {
    dup2(log_fd, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
  }
  std::vector<char*> argv;
  static char self[] = "oscarkv";
  argv.push_back(self);
  for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  execv("/proc/self/exe", argv.data());
  _exit(127);
}

}  // namespace

absl::StatusOr<std::vector<int>> FreePorts(int count) {
  std::vector<int> sockets, ports;
  for (int i = 0; i < count; ++i) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    const int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s >= 0) sockets.push_back(s);
    if (s < 0 || bind(s, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        getsockname(s, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      break;
    ports.push_back(ntohs(address.sin_port));
  }
  const int error = errno;
  for (const int s : sockets) close(s);  // together, so that no port comes twice
  if (ports.size() == static_cast<size_t>(count)) return ports;
  return absl::UnavailableError(
      absl::StrCat("no free port on 127.0.0.1 for a KV node: ", std::strerror(error)));
}

ChildProcesses::ChildProcesses(std::string log_dir) : log_dir_(std::move(log_dir)) {
  std::string pattern =
      absl::StrCat(std::filesystem::temp_directory_path().string(), "/oscarkv-ready.XXXXXX");
  if (mkdtemp(pattern.data()) != nullptr) ready_dir_ = pattern;
}

ChildProcesses::~ChildProcesses() {
  StopAll(std::chrono::seconds(5));
  if (!ready_dir_.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(ready_dir_, ignored);
  }
}

std::string ChildProcesses::Ended(pid_t pid, bool wait) {
  int status = 0;
  if (waitpid(pid, &status, wait ? 0 : WNOHANG) != pid) return "";
  if (WIFSIGNALED(status)) return absl::StrCat("killed by signal ", WTERMSIG(status));
  return absl::StrCat("exit status ", WEXITSTATUS(status));
}

absl::StatusOr<RolePorts> ChildProcesses::Start(const std::string& role,
                                                const std::vector<std::string>& args,
                                                Duration timeout) {
  if (ready_dir_.empty())
    return absl::UnavailableError("cannot make a temporary folder for ready files");
  const std::string id = absl::StrCat(role, "-", started_++);
  const std::string ready = absl::StrCat(ready_dir_, "/", id);
  std::vector<std::string> full = args;
  full.insert(full.end(), {"--ready-file", ready});
  int log_fd = -1;
  if (!log_dir_.empty()) {
    const std::string log = absl::StrCat(log_dir_, "/", id, ".log");
    log_fd = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (log_fd < 0)
      return absl::InvalidArgumentError(
          absl::StrCat("cannot write ", log, ": ", std::strerror(errno)));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) Exec(full, log_fd, parent);
  if (log_fd >= 0) close(log_fd);
  if (pid < 0)
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot start ", role, ": ", std::strerror(errno)));
  children_.push_back({id, pid});
  const Time deadline = SteadyClock::Get()->Now() + timeout;
  while (SteadyClock::Get()->Now() < deadline) {
    if (const RolePorts ports = ReadPorts(ready); ports.grpc != 0) return ports;
    if (const std::string end = Ended(pid, false); !end.empty()) {
      children_.pop_back();
      return absl::UnavailableError(absl::StrCat(id, " did not start: ", end, "; see its log"));
    }
    nanosleep(&kPollInterval, nullptr);
  }
  return absl::DeadlineExceededError(
      absl::StrCat(id, " was not ready within ", FormatDuration(timeout)));
}

absl::Status ChildProcesses::WaitForStopSignalOrExit() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const timespec second = {
      1, 0};  // SIGCHLD of children that ended before this call is gone: look anyway
  while (true) {
    const int s = sigtimedwait(&set, nullptr, &second);
    if (s == SIGTERM || s == SIGINT) return absl::OkStatus();
    for (auto it = children_.begin(); it != children_.end(); ++it) {
      if (const std::string end = Ended(it->pid, false); !end.empty()) {
        const std::string role = it->role;
        children_.erase(it);
        return absl::UnavailableError(absl::StrCat(role, " ended: ", end));
      }
    }
  }
}

void ChildProcesses::StopAll(Duration timeout) {
  const Time deadline = SteadyClock::Get()->Now() + timeout;
  for (auto it = children_.rbegin(); it != children_.rend(); ++it) {
    kill(it->pid, SIGTERM);
    while (Ended(it->pid, false).empty()) {
      if (SteadyClock::Get()->Now() > deadline) {
        LogWarn("killing a role that did not stop", {{"role", it->role}});
        kill(it->pid, SIGKILL);
        Ended(it->pid, true);
        break;
      }
      nanosleep(&kPollInterval, nullptr);
    }
  }
  children_.clear();
}

}  // namespace oscarkv::cli
