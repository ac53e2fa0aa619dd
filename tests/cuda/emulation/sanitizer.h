// Whether this is built with AddressSanitizer; GCC and clang say it differently.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define GRISTMILL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GRISTMILL_ASAN 1
#endif
#endif
