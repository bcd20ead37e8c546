#include "common/rpc/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

namespace oscarkv::rpc {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;

constexpr unsigned kReloadSeconds = 2;

std::shared_ptr<FileWatcherCertificateProvider> Watch(const auth::SecurityOptions& o) {
  return std::make_shared<FileWatcherCertificateProvider>(o.tls_key, o.tls_cert, o.tls_ca,
                                                          kReloadSeconds);
}

}  // namespace

std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const auth::SecurityOptions& o) {
  if (!o.serves_tls()) return grpc::InsecureServerCredentials();
  grpc::experimental::TlsServerCredentialsOptions tls(Watch(o));
  tls.watch_identity_key_cert_pairs();
  if (o.tls_client_auth != "none") {
    tls.watch_root_certs();
    tls.set_cert_request_type(o.tls_client_auth == "require"
                                  ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                  : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(tls);
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentials(const auth::SecurityOptions& o) {
  if (!o.connects_with_tls()) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions tls;
  tls.set_certificate_provider(Watch(o));
  tls.watch_root_certs();
  if (!o.tls_cert.empty()) tls.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(tls);
}

}  // namespace oscarkv::rpc
