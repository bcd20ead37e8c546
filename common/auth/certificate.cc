#include "common/auth/certificate.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <ctime>
#include <memory>
#include <utility>

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
  // Not for a null pointer, which an empty view may have.
  return BioPtr(BIO_new_mem_buf(pem.empty() ? "" : pem.data(), static_cast<int>(pem.size())));
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
  const int end = X509_cmp_time(X509_get0_notAfter(cert), &now);
  const int begin = X509_cmp_time(X509_get0_notBefore(cert), &now);
  if (end == 0 || begin == 0)  // never for equal times
    return absl::InvalidArgumentError("the certificate's dates cannot be read");
  if (end < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the certificate expired on ", Text(X509_get0_notAfter(cert))));
  }
  if (begin > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the certificate is valid from ", Text(X509_get0_notBefore(cert)), " on"));
  }
  return absl::OkStatus();
}

std::string CommonName(const X509* cert) {
  const X509_NAME* subject = X509_get_subject_name(cert);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at < 0) return "";
  const ASN1_STRING* data = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
  unsigned char* utf8 = nullptr;
  const int size = ASN1_STRING_to_UTF8(&utf8, data);
  std::string name(reinterpret_cast<const char*>(utf8), size > 0 ? size : 0);
  OPENSSL_free(utf8);
  return name.find('\0') == std::string::npos ? name : "";
}

std::string IpText(const ASN1_OCTET_STRING* ip) {
  const unsigned char* b = ASN1_STRING_get0_data(ip);
  const int size = ASN1_STRING_length(ip);
  char text[INET6_ADDRSTRLEN] = "";
  if (size == 4) inet_ntop(AF_INET, b, text, sizeof(text));
  if (size == 16) inet_ntop(AF_INET6, b, text, sizeof(text));
  return text;
}

std::string NameText(const GENERAL_NAME* name) {
  switch (name->type) {
    case GEN_DNS:
    case GEN_URI:
    case GEN_EMAIL: {
      const ASN1_STRING* s = name->d.ia5;
      std::string text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(s)),
                       ASN1_STRING_length(s));
      return text.find('\0') == std::string::npos ? text : "";
    }
    case GEN_IPADD:
      return IpText(name->d.iPAddress);
    default:
      return "";
  }
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

std::vector<std::string> CertificateNames(const x509_st* certificate) {
  std::vector<std::string> names;
  const auto add = [&names](std::string name) {
    if (!name.empty()) names.push_back(std::move(name));
  };
  auto* list = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; list != nullptr && i < sk_GENERAL_NAME_num(list); ++i)
    add(NameText(sk_GENERAL_NAME_value(list, i)));
  GENERAL_NAMES_free(list);
  ERR_clear_error();
  add(CommonName(certificate));
  return names;
}

std::vector<std::string> CertificateNames(absl::string_view pem) {
  const BioPtr bio = Open(pem);
  const CertPtr cert = ReadCert(bio.get());
  return cert == nullptr ? std::vector<std::string>() : CertificateNames(cert.get());
}

std::vector<CertificateDate> CertificateDates(absl::string_view pem) {
  std::vector<CertificateDate> dates;
  const BioPtr bio = Open(pem);
  while (dates.size() < kMaxDates) {
    const CertPtr cert = ReadCert(bio.get());
    if (cert == nullptr) break;
    std::tm tm{};
    if (ASN1_TIME_to_tm(X509_get0_notAfter(cert.get()), &tm) != 1) continue;
    const std::string name = CommonName(cert.get());
    dates.push_back({name.empty() ? "unnamed" : name, timegm(&tm)});
  }
  return dates;
}

}  // namespace oscarkv::auth
