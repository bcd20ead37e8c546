#include "kvstore/types.h"

namespace oscarkv {

absl::string_view BlockKindName(BlockKind kind) {
  switch (kind) {
    case BlockKind::kPage:
      return "page";
    case BlockKind::kBf16:
      return "bf16";
    case BlockKind::kHandover:
      return "handover";
  }
  return "unknown";
}

}  // namespace oscarkv
