#include "cli/report_files.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "codec/tensor_file.h"
#include "common/status_macros.h"

extern char** environ;

namespace oscarkv::cli {
namespace {

constexpr char kEnding[] = ".html";
constexpr uint64_t kMaxSvgBytes = 16 << 20;

absl::StatusOr<std::string> ReadText(const std::string& path) {
  ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, ReadWholeFile(path, kMaxSvgBytes));
  return std::string(bytes.begin(), bytes.end());
}

// Runs `gnuplot script`, its words into `log`. kNotFound: there is no gnuplot.
absl::Status RunGnuplot(const std::string& script, const std::string& log) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  std::string name = "gnuplot", file = script;
  char* const argv[] = {name.data(), file.data(), nullptr};
  pid_t pid = 0;
  const int error = posix_spawnp(&pid, "gnuplot", &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT) return absl::NotFoundError("gnuplot is not installed");
  if (error != 0)
    return absl::UnavailableError(absl::StrCat("cannot start gnuplot: ", std::strerror(error)));
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  const auto said = ReadText(log);
  return absl::UnavailableError(
      absl::StrCat("gnuplot failed: ", said.ok() ? said->substr(0, 500) : ""));
}

// Draws one figure into `svg`.
absl::StatusOr<std::string> Draw(const Figure& figure, const std::string& svg) {
  const std::string script = svg + ".gnuplot", log = svg + ".log";
  RETURN_IF_ERROR(WriteWholeFile(script, GnuplotScript(figure, svg)));
  const absl::Status status = RunGnuplot(script, log);
  std::error_code ignored;
  std::filesystem::remove(script, ignored);
  std::filesystem::remove(log, ignored);
  RETURN_IF_ERROR(status);
  return ReadText(svg);
}

}  // namespace

absl::Status CheckReportPath(const std::string& path) {
  if (path.empty() || absl::EndsWith(path, kEnding)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--report ", path, ": expected a name that ends with ", kEnding));
}

absl::Status WriteReportFiles(const std::string& path, absl::string_view title,
                              absl::string_view tables, const std::vector<Figure>& figures) {
  RETURN_IF_ERROR(CheckReportPath(path));
  const std::string stem = path.substr(0, path.size() - std::strlen(kEnding));
  std::vector<std::string> svgs;
  for (const Figure& figure : figures) {
    auto svg = Draw(figure, absl::StrCat(stem, "-", figure.name, ".svg"));
    if (absl::IsNotFound(svg.status())) {
      std::printf("gnuplot is not installed (package gnuplot-nox): no figures in the report\n");
      svgs.clear();
      break;
    }
    RETURN_IF_ERROR(svg.status());
    svgs.push_back(*std::move(svg));
  }
  RETURN_IF_ERROR(WriteWholeFile(path, HtmlReport(title, tables, figures, svgs)));
  std::printf("wrote %s and %d figures\n", path.c_str(), static_cast<int>(svgs.size()));
  return absl::OkStatus();
}

}  // namespace oscarkv::cli
