#include "common/http/tls_stream.h"

#include <openssl/ssl.h>

#include "absl/strings/str_cat.h"
#include "common/auth/authenticator.h"
#include "common/auth/certificate.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;

absl::Status ToStatus(const char* option, const boost::system::error_code& ec) {
  if (!ec) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", option, ": ", ec.message()));
}

absl::Status Prepare(const auth::SecurityOptions& o, const std::string& cert,
                     const std::string& key, const std::string& roots, TlsContext* context) {
  namespace asio = boost::asio;
  SSL_CTX* native = context->native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  SSL_CTX_set_options(native, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_num_tickets(native, 0);
  SSL_CTX_set_session_cache_mode(native, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(native, SSL_MODE_RELEASE_BUFFERS);
  boost::system::error_code ec;
  context->use_certificate_chain(asio::buffer(cert), ec);
  RETURN_IF_ERROR(ToStatus("tls-cert", ec));
  context->use_private_key(asio::buffer(key), TlsContext::pem, ec);
  RETURN_IF_ERROR(ToStatus("tls-key", ec));
  if (o.tls_client_auth == "none") return absl::OkStatus();
  context->add_certificate_authority(asio::buffer(roots), ec);
  RETURN_IF_ERROR(ToStatus("tls-ca", ec));
  // A certificate of somebody else's ends the handshake, also where none is needed.
  const int need = o.tls_client_auth == "require" ? asio::ssl::verify_fail_if_no_peer_cert : 0;
  context->set_verify_mode(asio::ssl::verify_peer | need, ec);
  return ToStatus("tls-client-auth", ec);
}

}  // namespace

TlsContexts::TlsContexts(const auth::SecurityOptions& options, const Clock* clock)
    : options_(options),
      cert_(options.tls_cert, kMaxPemBytes, clock),
      key_(options.tls_key, kMaxPemBytes, clock),
      ca_(options.tls_ca, kMaxPemBytes, clock) {}

absl::StatusOr<std::unique_ptr<TlsContexts>> TlsContexts::Create(
    const auth::SecurityOptions& options, const Clock* clock) {
  RETURN_IF_ERROR(auth::CheckSecurityOptions(options));
  auto made = std::unique_ptr<TlsContexts>(new TlsContexts(options, clock));
  ASSIGN_OR_RETURN(made->current_, made->Load());
  return made;
}

absl::StatusOr<std::shared_ptr<TlsContext>> TlsContexts::Load() {
  // All are read before any is judged: each is then looked at again only when it changes.
  absl::StatusOr<std::string> cert = cert_.Read(), key = key_.Read(), roots = "";
  if (!options_.tls_ca.empty()) roots = ca_.Read();
  RETURN_IF_ERROR(cert.status());
  RETURN_IF_ERROR(key.status());
  RETURN_IF_ERROR(roots.status());
  const int64_t now = auth::SystemUnixSeconds();
  RETURN_IF_ERROR(auth::CheckKeyPair(*cert, *key, now));
  if (!options_.tls_ca.empty()) RETURN_IF_ERROR(auth::CheckRoots(*roots, now));
  auto context = std::make_shared<TlsContext>(TlsContext::tls_server);
  RETURN_IF_ERROR(Prepare(options_, *cert, *key, *roots, context.get()));
  return context;
}

std::shared_ptr<TlsContext> TlsContexts::Current() {
  // Each is asked: what has changed is known only by asking.
  const bool cert = cert_.Changed(), key = key_.Changed();
  const bool roots = !options_.tls_ca.empty() && ca_.Changed();
  if (!cert && !key && !roots) return current_;
  absl::StatusOr<std::shared_ptr<TlsContext>> loaded = Load();
  if (loaded.ok()) {
    current_ = *std::move(loaded);
    LogInfo("certificates read again for HTTP", {{"file", options_.tls_cert}});
  } else {
    LogError("the certificates are no good: HTTP keeps the former ones",
             {{"file", options_.tls_cert}, {"error", std::string(loaded.status().message())}});
  }
  return current_;
}

std::vector<std::string> TlsStream::PeerNames() {
  if (!secure()) return {};
  const X509* peer = SSL_get0_peer_certificate(tls_->native_handle());
  if (peer == nullptr || SSL_get_verify_result(tls_->native_handle()) != X509_V_OK) return {};
  return auth::CertificateNames(peer);
}

}  // namespace oscarkv
