#include "common/auth/certificate.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv::auth {
namespace {

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using BioPtr = std::unique_ptr<BIO, Deleter<BIO_free>>;
using CertPtr = std::unique_ptr<X509, Deleter<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

BioPtr Open(absl::string_view pem) {
  return BioPtr(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

CertPtr ReadCert(BIO* bio) {
  CertPtr cert(PEM_read_bio_X509(bio, nullptr, nullptr, nullptr));
  ERR_clear_error();  // the end of the file is an error there
  return cert;
}

std::string Text(const ASN1_TIME* time) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  char buffer[64];
  ASN1_TIME_print(bio.get(), time);
  const int n = BIO_read(bio.get(), buffer, sizeof(buffer));
  return std::string(buffer, n > 0 ? n : 0);
}

absl::Status CheckDates(const X509* cert, int64_t unix_s) {
  time_t now = unix_s;
  if (X509_cmp_time(X509_get0_notAfter(cert), &now) < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the certificate expired on ", Text(X509_get0_notAfter(cert))));
  }
  if (X509_cmp_time(X509_get0_notBefore(cert), &now) > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the certificate is valid from ", Text(X509_get0_notBefore(cert)), " on"));
  }
  return absl::OkStatus();
}

// A passphrase would be asked for on the terminal of a daemon.
int NoPassphrase(char*, int, int, void*) {
  return -1;
}

}  // namespace

absl::Status CheckKeyPair(absl::string_view cert_pem, absl::string_view key_pem, int64_t unix_s) {
  const BioPtr cert_bio = Open(cert_pem), key_bio = Open(key_pem);
  const CertPtr cert = ReadCert(cert_bio.get());
  if (cert == nullptr) return absl::InvalidArgumentError("expected a certificate in PEM");
  const KeyPtr key(PEM_read_bio_PrivateKey(key_bio.get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr)
    return absl::InvalidArgumentError("expected a private key in PEM, without a passphrase");
  const bool pair = X509_check_private_key(cert.get(), key.get()) == 1;
  ERR_clear_error();
  if (!pair) return absl::InvalidArgumentError("the private key is not the certificate's");
  return CheckDates(cert.get(), unix_s);
}

absl::Status CheckRoots(absl::string_view pem, int64_t unix_s) {
  const BioPtr bio = Open(pem);
  absl::Status last = absl::InvalidArgumentError("expected certificates in PEM");
  while (const CertPtr cert = ReadCert(bio.get())) {
    last = CheckDates(cert.get(), unix_s);
    if (last.ok()) return last;
  }
  return last;
}

}  // namespace oscarkv::auth
