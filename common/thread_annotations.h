// Names for clang's thread-safety attributes (-Wthread-safety); no-ops for other compilers.
#pragma once

#include "absl/base/thread_annotations.h"

// abseil still defines some of these names without its prefix: ours replace them.
#undef CAPABILITY
#undef SCOPED_CAPABILITY
#undef GUARDED_BY
#undef PT_GUARDED_BY
#undef REQUIRES
#undef ACQUIRE
#undef RELEASE
#undef EXCLUDES
#undef NO_THREAD_SAFETY_ANALYSIS

#if defined(__clang__)
#define OSCARKV_TS_ATTR(x) __attribute__((x))
#else
#define OSCARKV_TS_ATTR(x)
#endif

#define CAPABILITY(x) OSCARKV_TS_ATTR(capability(x))
#define SCOPED_CAPABILITY OSCARKV_TS_ATTR(scoped_lockable)
#define GUARDED_BY(x) OSCARKV_TS_ATTR(guarded_by(x))
#define PT_GUARDED_BY(x) OSCARKV_TS_ATTR(pt_guarded_by(x))
#define REQUIRES(...) OSCARKV_TS_ATTR(requires_capability(__VA_ARGS__))
#define ACQUIRE(...) OSCARKV_TS_ATTR(acquire_capability(__VA_ARGS__))
#define RELEASE(...) OSCARKV_TS_ATTR(release_capability(__VA_ARGS__))
#define EXCLUDES(...) OSCARKV_TS_ATTR(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS OSCARKV_TS_ATTR(no_thread_safety_analysis)
