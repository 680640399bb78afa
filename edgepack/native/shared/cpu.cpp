// Says what the CPU lacks before any instruction runs that it lacks.
//
// The worker's own files are compiled for the oldest CPU of its kind, and llama.cpp for a newer
// one, so that this can run first.

#include <unistd.h>

#include <cstring>

#include "worker.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

char handled[512] = "";  // `"id":…,` of the request that is being handled

// The first feature that llama.cpp was compiled for and this CPU lacks, or null.
const char *missing_feature() {
#if defined(__aarch64__) && defined(NEEDS_DOTPROD)
    const unsigned long has = getauxval(AT_HWCAP);  // Linux: arch/arm64/include/uapi/asm/hwcap.h
    if (!(has & 1UL << 20)) return "asimddp";
    if (!(has & 1UL << 9)) return "fphp";
    if (!(has & 1UL << 10)) return "asimdhp";
#elif defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return "cpuid";
    if (!(c & 1U << 20)) return "sse4_2";
#if defined(NEEDS_AVX2)
    if (!(c & 1U << 12)) return "fma";
    if (!(c & 1U << 29)) return "f16c";
    if (!(c & 1U << 27)) return "xsave";
    unsigned saved = 0, high = 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & 6U) != 6U) return "avx (not enabled by the system)";
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1U << 5)) return "avx2";
    if (!(b & 1U << 8)) return "bmi2";
#endif
#endif
    return nullptr;
}

// Before the constructors of llama.cpp, which have the default priority and its instructions.
__attribute__((constructor(101))) void check_cpu() {
    if (const char *feature = missing_feature()) {
        worker::fail_at_once("this CPU cannot run this build, use the baseline: it lacks ",
                             feature);
    }
}

}  // namespace

void worker::handling(const std::string *id) {
    const std::string text = "\"id\":" + (id ? json(*id).dump() : "null") + ",";
    if (text.size() < sizeof handled) memcpy(handled, text.c_str(), text.size() + 1);
}

// Print without the C++ library, which may not work yet, or not any more.
[[noreturn]] void worker::fail_at_once(const char *message, const char *detail) {
    for (const char *text :
         {"{", const_cast<const char *>(handled), "\"event\":\"failed\",\"message\":\"", message,
          detail, "\"}\n"}) {
        if (write(STDOUT_FILENO, text, strlen(text)) < 0) break;
    }
    _exit(1);
}
