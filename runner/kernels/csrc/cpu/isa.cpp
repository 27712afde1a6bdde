#include "isa.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <stdexcept>

#if SHALE_X86
#include <cpuid.h>
#endif
#if SHALE_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace shale {
namespace {

struct Features {
  bool avx2 = false, avxvnni = false, avx512vnni = false, amx = false;
  bool is_amd = false;
};

constexpr bool bit(uint32_t word, int index) { return (word >> index & 1) != 0; }

#if SHALE_X86
// Linux lets a process use the tile registers after it has asked for them; threads inherit it. Refused by kernels
// before 5.16 and where a thread has a signal stack too small for the tiles.
bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// CPUID and XGETBV by hand: __builtin_cpu_supports needs a symbol of the compiler's runtime that not every toolchain
// links into a shared object. Bits: Intel SDM vol. 2A, CPUID leaf 1 and leaf 7.
Features detect() {
  Features found;
  uint32_t eax, ebx, ecx, edx, leaf1_ecx;
  constexpr uint32_t kAuth = 0x68747541;  // "Auth" of "AuthenticAMD"
  found.is_amd = __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == kAuth;
  if (!__get_cpuid(1, &eax, &ebx, &leaf1_ecx, &edx) || !bit(leaf1_ecx, 27)) return found;  // OSXSAVE
  uint32_t enabled, high;
  asm volatile("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return found;
  const uint32_t max_subleaf = eax;
  const bool ymm_enabled = (enabled & 0x06) == 0x06, zmm_enabled = (enabled & 0xe6) == 0xe6,
             tiles_enabled = bit(enabled, 17) && bit(enabled, 18);
  const bool fma = bit(leaf1_ecx, 12), f16c = bit(leaf1_ecx, 29);
  found.avx2 = ymm_enabled && fma && f16c && bit(ebx, 5);
  const bool avx512 = bit(ebx, 16) && bit(ebx, 17) && bit(ebx, 30) && bit(ebx, 31);  // F DQ BW VL
  found.avx512vnni = found.avx2 && zmm_enabled && avx512 && bit(ecx, 11);
  const bool amx = bit(edx, 24) && bit(edx, 25);  // TILE INT8
  found.amx = found.avx512vnni && tiles_enabled && amx && request_tiles();
  if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) found.avxvnni = found.avx2 && bit(eax, 4);
  return found;
}
#else
Features detect() { return {}; }
#endif

struct Named {
  Isa isa;
  const char* name;
  bool (*available)(const Features&);
};
constexpr std::array<Named, 5> kIsas{{
    {Isa::portable, "portable", [](const Features&) { return true; }},
    {Isa::avx2, "avx2", [](const Features& f) { return f.avx2; }},
    {Isa::avxvnni, "avxvnni", [](const Features& f) { return f.avxvnni; }},
    {Isa::avx512vnni, "avx512vnni", [](const Features& f) { return f.avx512vnni; }},
    {Isa::amx, "amx", [](const Features& f) { return f.amx; }},
}};

const Features& features() {
  static const Features found = detect();
  return found;
}

Isa best() {
  Isa isa = Isa::portable;
  for (const Named& row : kIsas) {
    if (row.available(features())) isa = row.isa;
  }
  return isa;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) noexcept { return kIsas[static_cast<std::size_t>(isa)].name; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Named& row : kIsas) {
    if (row.available(features())) names.emplace_back(row.name);
  }
  return names;
}

Isa active_isa() noexcept { return active().load(std::memory_order_relaxed); }

int64_t prefetch_bytes() noexcept { return features().is_amd ? 8192 : 2048; }

void set_isa(std::string_view name) {
  std::string known;
  for (const Named& row : kIsas) {
    if (!row.available(features())) continue;
    if (row.name == name) return active().store(row.isa, std::memory_order_relaxed);
    known += known.empty() ? row.name : std::string(", ") + row.name;
  }
  throw std::invalid_argument("instruction set '" + std::string(name) + "' is not available; this machine has " +
                              known);
}

}  // namespace shale
