// How an etcd is connected to: with TLS or in plain text, and as whom. All of them are files that
// are there for as long as the process lives, read again when connections are made anew.
#pragma once

#include <string>

namespace oscarkv {

struct EtcdAccess {
  std::string ca;             // PEM; empty: plain text
  std::string cert, key;      // PEM: of this client, where etcd asks for one; needs ca
  std::string user;           // empty: nobody; needs ca
  std::string password_file;  // its first line
};

}  // namespace oscarkv
