// AMX's tiles in plain C++, so that native.cpp's form for AMX runs on any processor that has AVX512 with bfloat16:
// g++ -D__AMX_BF16__ -include tiles.h. What the processor refuses ends the process here: tiles without a configuration.

#pragma once

#include <immintrin.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

struct EmulatedTiles {
  bool configured = false;
  alignas(64) uint8_t numbers[8][16][64];
};
inline thread_local EmulatedTiles emulated;

inline uint8_t (*emulated_tile(int tile))[64] {
  if (!emulated.configured) std::abort();
  return emulated.numbers[tile];
}

inline void emulated_configure(const void* config) {
  const uint8_t* at = (const uint8_t*)config;
  if (at[0] != 1) std::abort();
  for (int tile = 0; tile < 8; tile++)  // whole tiles only: 16 rows of 64 bytes
    if (at[16 + 2 * tile] != 64 || at[17 + 2 * tile] != 0 || at[48 + tile] != 16) std::abort();
  emulated.configured = true;
  std::memset(emulated.numbers, 0, sizeof emulated.numbers);
}

inline void emulated_release() { emulated.configured = false; }

inline void emulated_zero(int tile) { std::memset(emulated_tile(tile), 0, 1024); }

inline void emulated_load(int tile, const void* from, int64_t stride) {
  for (int row = 0; row < 16; row++) std::memcpy(emulated_tile(tile)[row], (const char*)from + row * stride, 64);
}

inline void emulated_store(int tile, void* to, int64_t stride) {
  for (int row = 0; row < 16; row++) std::memcpy((char*)to + row * stride, emulated_tile(tile)[row], 64);
}

// sums [16, 16] in float32 += a [16, 32] · b, b paired: [16][16][2].
inline void emulated_product(int sums, int a, int b) {
  for (int row = 0; row < 16; row++) {
    float* to = (float*)emulated_tile(sums)[row];
    __m512 sum = _mm512_load_ps(to);
    for (int pair = 0; pair < 16; pair++) {
      int32_t both;
      std::memcpy(&both, emulated_tile(a)[row] + 4 * pair, 4);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)_mm512_load_si512(emulated_tile(b)[pair]));
    }
    _mm512_store_ps(to, sum);
  }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_configure
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_dpbf16ps emulated_product
#define syscall(...) 0  // the system's leave to use tiles
