// Certificates made by the openssl command line in a temporary folder, for tests of TLS.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace oscarkv {

// Removed with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "oscarkv-test-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return absl::StrCat(path_, "/", name); }
  // By rename, so that no reader sees half of it.
  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = *this / name;
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);
    return path;
  }

 private:
  std::string path_;
};

// Authorities and what they sign: NAME.pem and NAME.key in the folder.
class TestCertificates {
 public:
  std::string Cert(const std::string& name) const { return folder_ / (name + ".pem"); }
  std::string Key(const std::string& name) const { return folder_ / (name + ".key"); }
  const TemporaryFolder& folder() const { return folder_; }

  void MakeAuthority(const std::string& name) const {
    Run(absl::StrCat("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ",
                     "-days 2 -subj '/CN=", name, "' -keyout ", Key(name), " -out ", Cert(name)));
  }
  // names: as "DNS:worker.example,IP:127.0.0.1"; days < 0: expired.
  void MakeCertificate(const std::string& name, const std::string& authority,
                       const std::string& names, int days = 2) const {
    const std::string request = folder_ / (name + ".csr"), list = folder_ / (name + ".ext");
    std::ofstream(list) << "subjectAltName=" << names << "\n";
    Run(absl::StrCat("openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ",
                     "-subj '/CN=", name, "' -keyout ", Key(name), " -out ", request));
    Run(absl::StrCat("openssl x509 -req -in ", request, " -CA ", Cert(authority), " -CAkey ",
                     Key(authority), " -CAcreateserial -days ", days, " -extfile ", list, " -out ",
                     Cert(name)));
  }

 private:
  static void Run(const std::string& command) {
    ASSERT_EQ(std::system((command + " >/dev/null 2>&1").c_str()), 0) << command;
  }
  TemporaryFolder folder_;
};

}  // namespace oscarkv
