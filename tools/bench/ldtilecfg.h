// Forced into llama.cpp's build (g++ -include): g++ 12 declares that _tile_loadconfig reads 8 bytes although
// it reads 64, drops the stores to the rest, and the first AMX matrix product of the peer ends in SIGSEGV.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
