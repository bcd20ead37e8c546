// How long the certificates of a process are still good, for its metrics.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/auth/security_options.h"
#include "common/auth/watched_file.h"
#include "common/metrics.h"
#include "common/mutex.h"

namespace oscarkv::auth {

struct CertificateMetrics {
  explicit CertificateMetrics(MetricRegistry* r)
      : expires(
            r->AddGauge("oscarkv_tls_certificate_expires_seconds",
                        "Seconds until the certificate's end (negative after it), of each "
                        "certificate in the files of --tls-cert and --tls-ca, by its common "
                        "name; of several with one name the first to end. NaN: no longer there.",
                        {"file", "name"})) {}
  MetricFamily& expires;  // {file, name}
};

// Thread-safe. The files are read again when they were replaced.
class CertificateWatch {
 public:
  // The registry outlives this. Several of one process may watch the same files.
  CertificateWatch(const SecurityOptions& options, MetricRegistry* registry,
                   const Clock* clock = SteadyClock::Get());
  // Before each export of the registry: the time left changes by itself.
  void Refresh();

 private:
  struct File {
    const char* label;
    WatchedFile file;
    std::string pem;
    bool read = false;
  };

  Mutex mu_;
  std::vector<File> files_ GUARDED_BY(mu_);
  std::set<std::pair<std::string, std::string>> shown_ GUARDED_BY(mu_);  // file, name
  CertificateMetrics metrics_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::auth
