// Certificates and keys as they come from files and from peers: whatever is in them, an error or
// names and dates of sensible form.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "common/auth/certificate.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 1 << 16) return 0;
  using namespace oscarkv::auth;
  const absl::string_view pem(reinterpret_cast<const char*>(data), size);
  constexpr int64_t kNow = 1'800'000'000;
  for (const std::string& name : CertificateNames(pem)) {
    if (name.empty() || name.find('\0') != std::string::npos) std::abort();
  }
  const std::vector<CertificateDate> dates = CertificateDates(pem);
  if (dates.size() > kMaxDates) std::abort();
  for (const CertificateDate& date : dates) {
    if (date.name.empty()) std::abort();
  }
  if (CheckRoots(pem, kNow).ok() && dates.empty()) std::abort();
  CheckKeyPair(pem, pem, kNow).IgnoreError();
  return 0;
}
