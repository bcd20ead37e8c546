#include "common/auth/certificate_metrics.h"

#include <cmath>
#include <map>
#include <utility>

#include "common/auth/authenticator.h"
#include "common/auth/certificate.h"

namespace oscarkv::auth {
namespace {
constexpr size_t kMaxPemBytes = 1 << 20;
}  // namespace

CertificateWatch::CertificateWatch(const SecurityOptions& options, MetricRegistry* registry,
                                   const Clock* clock)
    : metrics_(registry) {
  MutexLock lock(mu_);
  for (const auto& [label, path] :
       {std::pair<const char*, const std::string&>{"tls-cert", options.tls_cert},
        {"tls-ca", options.tls_ca}}) {
    if (!path.empty()) files_.push_back({label, WatchedFile(path, kMaxPemBytes, clock), {}, false});
  }
}

void CertificateWatch::Refresh() {
  MutexLock lock(mu_);
  std::map<std::pair<std::string, std::string>, int64_t> first;
  bool replaced = false;
  for (File& f : files_) {
    if (!f.read || f.file.Changed()) {
      f.read = replaced = true;
      auto text = f.file.Read();
      if (text.ok()) f.pem = *std::move(text);  // else what was there is what is in use
    }
    for (const CertificateDate& date : CertificateDates(f.pem)) {
      const auto [it, added] = first.emplace(std::pair(f.label, date.name), date.not_after_unix_s);
      if (!added && date.not_after_unix_s < it->second) it->second = date.not_after_unix_s;
    }
  }
  const int64_t now = SystemUnixSeconds();
  if (replaced) {  // those that are gone are compared with nothing
    for (const auto& key : shown_) {
      if (!first.contains(key)) metrics_.expires.With({key.first, key.second}).Set(std::nan(""));
    }
    shown_.clear();
    for (const auto& item : first) shown_.insert(item.first);
  }
  for (const auto& [key, end] : first)
    metrics_.expires.With({key.first, key.second}).Set(static_cast<double>(end - now));
}

}  // namespace oscarkv::auth
