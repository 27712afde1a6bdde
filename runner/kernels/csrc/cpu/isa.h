// Which instruction set the kernels use, chosen at run time.
//
// A translation unit is compiled for one family of flags and only entered when the machine has all of it:
//   portable    the compiler's baseline for the target
//   avx2        AVX2 FMA F16C
//   avxvnni     avx2 and AVX-VNNI
//   avx512vnni  avx2 and AVX-512 F BW DQ VL VNNI
//   amx         avx512vnni and AMX TILE INT8, where the operating system lets the process use the tiles. Only products
//   of
//               many tokens with quantized matrices have code of their own; everything else is avx512vnni's.
// An inline function that two such units share must live in an anonymous namespace or in a namespace (or template
// argument) of its own instruction set: the linker keeps one copy of any other, perhaps one that this machine cannot
// run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shale {

enum class Isa { portable, avx2, avxvnni, avx512vnni, amx };  // ascending: a machine prefers the last that it has

const char* isa_name(Isa isa) noexcept;

// What this machine and this build can run, ascending.
std::vector<std::string> available_isas();

// The best available one until set_isa is called.
Isa active_isa() noexcept;

// How far ahead of its reader a stream of weights is best asked for. Decode with one thread, share of the bandwidth of
// reading alone, mean of Q4_0, Q8_0, Q4_K, Q6_K on an Intel server core: 0.89 with 1 KiB, 0.88 with 2 KiB, 0.71 with
// 4 KiB. GB/s of one AMD Zen 5 core, Q4_K and Q6_K with one token: 33 and 31 with 2 KiB, 37 and 41 with 6 KiB, 45 and
// 42 with 8 KiB, 42 and 38 with 12 KiB.
int64_t prefetch_bytes() noexcept;

// Throws std::invalid_argument that names the available ones. Not to be called while kernels run.
void set_isa(std::string_view name);

}  // namespace shale
