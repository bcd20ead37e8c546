// Child processes of the transport's tests: start, talk over pipes, stop, kill, reap.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace oscarkv {

class ChildProcess {
 public:
  // Runs the program of that name from this test's folder. Null when it cannot.
  static std::unique_ptr<ChildProcess> Start(const std::string& name,
                                             const std::vector<std::string>& args) {
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof(self));
    if (n <= 0) return nullptr;
    std::string path(self, n);
    path = path.substr(0, path.rfind('/') + 1) + name;
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) return nullptr;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::vector<char*> argv = {path.data()};
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    pid_t pid = -1;
    const int error = posix_spawn(&pid, path.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    if (error != 0) {
      close(in[1]);
      close(out[0]);
      return nullptr;
    }
    return std::unique_ptr<ChildProcess>(new ChildProcess(pid, in[1], fdopen(out[0], "r")));
  }
  ~ChildProcess() {
    Signal(SIGKILL);
    Reap();
    close(stdin_);
    fclose(stdout_);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The next line that it prints; empty at its end.
  std::string ReadLine() {
    std::string line;
    for (int c; (c = fgetc(stdout_)) != EOF && c != '\n';) line.push_back(static_cast<char>(c));
    return line;
  }
  void Signal(int signal) {
    if (pid_ > 0) kill(pid_, signal);
  }
  // Returns when it is stopped.
  void Stop() {
    Signal(SIGSTOP);
    int status = 0;
    waitpid(pid_, &status, WUNTRACED);
  }
  bool alive() {
    int status = 0;
    if (pid_ > 0 && waitpid(pid_, &status, WNOHANG) == pid_) pid_ = -1;
    return pid_ > 0;
  }
  // Waits for its end; the exit status as of waitpid.
  int Reap() {
    int status = 0;
    if (pid_ > 0) waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }
  // Tells it to end by closing its input, then waits.
  int Finish() {
    close(stdin_);
    stdin_ = -1;
    return Reap();
  }

 private:
  ChildProcess(pid_t pid, int in, FILE* out) : pid_(pid), stdin_(in), stdout_(out) {}
  pid_t pid_;
  int stdin_;
  FILE* stdout_;
};

}  // namespace oscarkv
