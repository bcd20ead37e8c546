#include "common/sha256.h"

#include <openssl/evp.h>

#include <bit>
#include <new>

namespace oscarkv {

static_assert(std::endian::native == std::endian::little,
              "digests are defined over little-endian integers");

struct Sha256::Context {
  EVP_MD_CTX* md = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(md); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  if (context_->md == nullptr) throw std::bad_alloc();
  EVP_DigestInit_ex(context_->md, EVP_sha256(), nullptr);
}
Sha256::~Sha256() = default;

Sha256& Sha256::Update(const void* data, size_t size) {
  EVP_DigestUpdate(context_->md, data, size);
  return *this;
}

Sha256& Sha256::UpdateU64(uint64_t v) {
  return Update(&v, sizeof(v));
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  EVP_DigestFinal_ex(context_->md, digest.data(), nullptr);
  EVP_DigestInit_ex(context_->md, EVP_sha256(), nullptr);
  return digest;
}

std::string ToHex(const void* data, size_t size) {
  static constexpr char kDigits[] = "0123456789abcdef";
  const auto* p = static_cast<const uint8_t*>(data);
  std::string out;
  out.reserve(2 * size);
  for (size_t i = 0; i < size; ++i) {
    out.push_back(kDigits[p[i] >> 4]);
    out.push_back(kDigits[p[i] & 15]);
  }
  return out;
}

}  // namespace oscarkv
