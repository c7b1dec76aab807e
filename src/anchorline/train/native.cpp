// What training in bfloat16 on a CPU does itself: products, attention over packed rows, norms, gated activations, the head's
// softmax.
//
// Needs AVX512 with bfloat16; with AMX its tiles are used. native.py compiles this file for the machine that it runs on,
// and says what each function's arguments are. Every result is the same for any number of threads: each piece of it is
// computed by one thread, and sums over pieces are added up in a fixed order. The compiler is told to join no product and sum
// by itself, so that numbers are rounded where it says so here.
//
// Attention keeps queries in lanes: scores are made transposed [keys, queries], so that softmax goes down the rows, a
// vector of queries at a time. Products take their second factor in pairs of rows, interleaved ("paired": [k/2][n][2]), as
// the processor's bfloat16 instructions do.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using bf16 = uint16_t;
using V = __m512;

constexpr int BLOCK = 64;  // queries, and keys, of a block of scores
constexpr int HALF = 32;   // of them, what is left out together where no query sees the key
constexpr int LANES = 16;
constexpr int64_t PANEL = 32;  // outputs of a linear layer that are made together
constexpr int COLUMNS = BLOCK / LANES;
constexpr float LOG2E = 1.4426950408889634f;

inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

inline V widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline V load(const bf16* p) { return widened(_mm256_loadu_si256((const __m256i*)p)); }
inline __mmask16 first_of(int64_t count) { return count < LANES ? (1u << count) - 1 : 0xffff; }
inline V load_some(const bf16* p, int64_t count) { return widened(_mm256_maskz_loadu_epi16(first_of(count), p)); }  // the rest: 0
inline __m256i narrow(V x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline void store(bf16* p, V x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V x) { _mm512_storeu_ps(p, x); }
inline V rounded(V x) { return widened(narrow(x)); }
inline V all(float x) { return _mm512_set1_ps(x); }

// 2^x, to 1e-7 of it; below -126 it is that of -126, from 128 on infinity, for NaN it is NaN.
inline V exp2(V x) {
  x = _mm512_min_ps(all(128.f), _mm512_max_ps(all(-126.f), x));  // of a NaN the second operand is taken
  const __m512i whole = _mm512_cvtps_epi32(x);
  const V part = _mm512_sub_ps(x, _mm512_cvtepi32_ps(whole));
  // a fit on [-1/2, 1/2] that is exact at 0
  V y = all(0.001326483441516757f);
  y = _mm512_fmadd_ps(y, part, all(0.009671514853835106f));
  y = _mm512_fmadd_ps(y, part, all(0.05550733581185341f));
  y = _mm512_fmadd_ps(y, part, all(0.24022242426872253f));
  y = _mm512_fmadd_ps(y, part, all(0.6931470036506653f));
  y = _mm512_fmadd_ps(y, part, all(1.f));
  // the exponent by its bits: what would scale instead traps where numbers become too small
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(whole, 23)));
}

inline V logistic(V x) { return _mm512_div_ps(all(1.f), _mm512_add_ps(all(1.f), exp2(_mm512_mul_ps(x, all(-LOG2E))))); }

// C[m, n] (+)= A[m, k] · B[k, n], A by rows, B paired; m is a multiple of TALL, k of STEP, n of 32. DEEP: of a longer k, what of
// A and B stays in a core's caches.
#ifdef __AMX_BF16__
constexpr int64_t TALL = 32, STEP = 32, DEEP = 2048;

struct Tiles {
  Tiles() {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;
    for (int tile = 0; tile < 8; tile++) {
      config[16 + 2 * tile] = 64;
      config[48 + tile] = 16;
    }
    // older g++ (PR 114098) takes only its first 8 bytes for read, and may leave the rest unwritten
    asm volatile("" ::"r"(config) : "memory");
    _tile_loadconfig(config);
  }
  ~Tiles() { _tile_release(); }
};

void multiply(const bf16* a, int64_t lda, const bf16* b, int64_t ldb, float* c, int64_t ldc, int m, int n, int k, bool add) {
  for (int i = 0; i < m; i += 32)
    for (int j = 0; j < n; j += 32) {
      float* at = c + i * ldc + j;
      if (add) {
        _tile_loadd(0, at, ldc * 4);
        _tile_loadd(1, at + 16, ldc * 4);
        _tile_loadd(2, at + 16 * ldc, ldc * 4);
        _tile_loadd(3, at + 16 * ldc + 16, ldc * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int s = 0; s < k; s += 32) {
        _tile_loadd(4, a + i * lda + s, lda * 2);
        _tile_loadd(6, b + s / 2 * ldb * 2 + j * 2, ldb * 4);
        _tile_loadd(7, b + s / 2 * ldb * 2 + j * 2 + 32, ldb * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + (i + 16) * lda + s, lda * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, at, ldc * 4);
      _tile_stored(1, at + 16, ldc * 4);
      _tile_stored(2, at + 16 * ldc, ldc * 4);
      _tile_stored(3, at + 16 * ldc + 16, ldc * 4);
    }
}
#else
constexpr int64_t TALL = 8, STEP = 2, DEEP = 768;

struct Tiles {
  Tiles() {}
  ~Tiles() {}
};

void multiply(const bf16* a, int64_t lda, const bf16* b, int64_t ldb, float* c, int64_t ldc, int m, int n, int k, bool add) {
  constexpr int ROWS = TALL;
  for (int i = 0; i < m; i += ROWS)
    for (int j = 0; j < n; j += 2 * LANES) {
      V sums[ROWS][2];
      for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) sums[r][h] = add ? _mm512_loadu_ps(c + (i + r) * ldc + j + h * LANES) : _mm512_setzero_ps();
      for (int s = 0; s < k; s += 2) {
        const __m512bh left = (__m512bh)_mm512_loadu_si512(b + s * ldb + 2 * j);
        const __m512bh right = (__m512bh)_mm512_loadu_si512(b + s * ldb + 2 * j + 2 * LANES);
        for (int r = 0; r < ROWS; r++) {
          int32_t pair;
          std::memcpy(&pair, a + (i + r) * lda + s, 4);
          const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], both, left);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], both, right);
        }
      }
      for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) _mm512_storeu_ps(c + (i + r) * ldc + j + h * LANES, sums[r][h]);
    }
}
#endif

// 16 x 16 numbers of 32 bits, rows for columns.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// Rows [BLOCK, width] to their transpose, paired: [width / 2][BLOCK][2].
void transpose_paired(const bf16* rows, int64_t stride, int width, bf16* out) {
  __m512i r[16];
  for (int first = 0; first < BLOCK; first += 16)
    for (int d = 0; d < width; d += 32) {
      for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(rows + (first + i) * stride + d);
      transpose(r);
      for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + ((d / 2 + i) * BLOCK + first) * 2, r[i]);
    }
}

// Two rows of bfloat16, interleaved.
inline void interleave(const bf16* one, const bf16* two, int width, bf16* out) {
  for (int d = 0; d < width; d += 16) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(one + d)));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(two + d)));
    _mm512_storeu_si512(out + 2 * d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// The same of 32 numbers, or as many as are given; a row that is not there is zeros.
inline void interleave(const bf16* one, const bf16* two, __mmask32 given, bf16* out) {
  const __m512i a = one ? _mm512_maskz_loadu_epi16(given, one) : _mm512_setzero_si512();
  const __m512i b = two ? _mm512_maskz_loadu_epi16(given, two) : _mm512_setzero_si512();
  for (int half = 0; half < 2; half++) {
    const __m256i low = half ? _mm512_extracti64x4_epi64(a, 1) : _mm512_castsi512_si256(a);
    const __m256i high = half ? _mm512_extracti64x4_epi64(b, 1) : _mm512_castsi512_si256(b);
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
    _mm512_storeu_si512(out + 32 * half, _mm512_or_si512(_mm512_cvtepu16_epi32(low), wide));
  }
}

// The columns of a panel that are there.
inline __mmask32 within(int64_t column, int64_t columns) {
  return column + PANEL <= columns ? ~0u : (1u << (columns - column)) - 1;
}

// Those of a row; a whole one past the caches, which would read the line first.
inline void write(bf16* to, __mmask32 given, __m512i panel) {
  if (given == ~0u && (uintptr_t)to % 64 == 0)
    _mm512_stream_si512((__m512i*)to, panel);
  else
    _mm512_mask_storeu_epi16(to, given, panel);
}

// Rows [rows, width], rows even, to pairs of rows: [rows / 2][width][2].
void paired(const bf16* rows, int count, int width, bf16* out) {
  for (int i = 0; i < count; i += 2) interleave(rows + i * width, rows + (i + 1) * width, width, out + i * width);
}

// [wide, BLOCK] in float32, times a factor a column, to rows [BLOCK, wide] of bfloat16.
void write_rows(const float* columns, int64_t wide, const float* factors, bf16* out) {
  __m512i r[16];
  for (int first = 0; first < BLOCK; first += 16)
    for (int64_t d = 0; d < wide; d += 16) {
      const V factor = _mm512_load_ps(factors + first);
      for (int i = 0; i < 16; i++)
        r[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(columns + (d + i) * BLOCK + first), factor));
      transpose(r);
      for (int i = 0; i < 16; i++) store(out + (first + i) * wide + d, _mm512_castsi512_ps(r[i]));
    }
}

// What a thread has used and will use again, by powers of two: malloc's lists grow long where sizes are many, and take longer
// to look through than attention takes to compute.
struct Shelves {
  static constexpr int KINDS = 23;  // up to 4 MiB
  std::vector<void*> kinds[KINDS];
  ~Shelves() {
    for (auto& kind : kinds)
      for (void* p : kind) std::free(p);
  }
};
thread_local Shelves shelves;

template <class T>
class Room {
  int kind = 6;  // 64 bytes
  void* at;

 public:
  explicit Room(int64_t count) {
    const int64_t bytes = count * sizeof(T);
    while (kind < Shelves::KINDS && int64_t(1) << kind < bytes) kind++;
    if (kind == Shelves::KINDS) {
      at = std::aligned_alloc(64, up(bytes, 64));
    } else if (auto& free = shelves.kinds[kind]; free.empty()) {
      at = std::aligned_alloc(64, int64_t(1) << kind);
    } else {
      at = free.back();
      free.pop_back();
    }
    if (!at) {
      std::fputs("anchorline: out of memory; lower train.tokens_per_row\n", stderr);
      std::abort();
    }
  }
  Room(const Room&) = delete;
  ~Room() {
    if (kind == Shelves::KINDS)
      std::free(at);
    else
      shelves.kinds[kind].push_back(at);
  }
  operator T*() const { return (T*)at; }
};

// One causal run of tokens: up to three stretches of a row. Its last `queries` tokens ask, all of it answers.
struct Sequence {
  int64_t stretches[3][2];
  int64_t queries;
  int64_t unused;

  int64_t keys() const {
    int64_t sum = 0;
    for (const auto& s : stretches) sum += s[1] - s[0];
    return sum;
  }
  // The row's place of one of its tokens.
  int64_t place(int64_t token) const {
    for (const auto& s : stretches) {
      if (token < s[1] - s[0]) return s[0] + token;
      token -= s[1] - s[0];
    }
    return -1;
  }
};
static_assert(sizeof(Sequence) == 64, "eight numbers of 64 bits");

// What has heads and tokens: x[head][token][width], by strides in numbers; a token's width is one stretch.
struct Heads {
  bf16* at;
  int64_t head, token;
  bf16* row(int64_t h, int64_t t) const { return at + h * head + t * token; }
};

struct Shape {
  int64_t tokens, key_heads, groups, width, wide;  // wide: the width, filled up to a multiple of 32
  int64_t window;                                  // 0: none
  float scale;
};

// A sequence's tokens [from, from + count) as rows of `wide`, filled up with zeros to `rows`.
void gather(const Heads& x, int64_t head, const Sequence& sequence, int64_t from, int64_t count, const Shape& shape, bf16* out,
            int64_t rows) {
  for (int64_t t = 0; t < rows; t++) {
    bf16* to = out + t * shape.wide;
    const int64_t filled = t < count ? shape.width : 0;
    if (filled) std::memcpy(to, x.row(head, sequence.place(from + t)), 2 * filled);
    std::memset(to + filled, 0, 2 * (shape.wide - filled));
  }
}

// Back: the first `count` rows of `wide` to a sequence's tokens from `from` on.
void scatter(const Heads& x, int64_t head, const Sequence& sequence, int64_t from, int64_t count, const Shape& shape,
             const bf16* rows) {
  for (int64_t t = 0; t < count; t++)
    std::memcpy(x.row(head, sequence.place(from + t)), rows + t * shape.wide, 2 * shape.width);
}

// A block of up to 32 rows and columns, rows for columns; of each row that is made `room` numbers, the last of them zeros.
void transpose_block(const bf16* from, int64_t stride, int64_t rows, int64_t columns, bf16* to, int64_t out_stride, int64_t room) {
  alignas(64) bf16 filled[32 * 32];
  if (rows < 32 || columns < 32) {
    std::memset(filled, 0, sizeof filled);
    for (int64_t i = 0; i < rows; i++) std::memcpy(filled + 32 * i, from + i * stride, 2 * columns);
    from = filled, stride = 32;
  }
  for (int half = 0; half < 32; half += 16) {
    __m512i r[16];  // pairs of rows, so that what is moved has 32 bits
    for (int i = 0; i < 16; i++) {
      const bf16* at = from + 2 * i * stride + half;
      const __m512i one = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at));
      const __m512i two = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(at + stride)));
      r[i] = _mm512_or_si512(one, _mm512_slli_epi32(two, 16));
    }
    transpose(r);
    for (int i = 0; i < 16 && half + i < columns; i++) {
      if (room == 32) {
        _mm512_storeu_si512(to + (half + i) * out_stride, r[i]);
      } else {
        alignas(64) bf16 row[32];
        _mm512_store_si512(row, r[i]);
        std::memcpy(to + (half + i) * out_stride, row, 2 * room);
      }
    }
  }
}

// Rows [rows, width], both multiples of 32, to [width, rows].
void transpose_all(const bf16* rows, int64_t count, int64_t width, bf16* out) {
  for (int64_t i = 0; i < count; i += 32)
    for (int64_t d = 0; d < width; d += 32) transpose_block(rows + i * width + d, width, 32, 32, out + d * count + i, count, 32);
}

// The lanes of 16 queries, from `query` on, that see a key.
inline __mmask16 sees(int64_t query, int64_t key, int64_t window) {
  const __m512i distance = _mm512_add_epi32(_mm512_set1_epi32((int)(query - key)),
                                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  __mmask16 seen = _mm512_cmpge_epi32_mask(distance, _mm512_setzero_si512());
  if (window) seen &= _mm512_cmplt_epi32_mask(distance, _mm512_set1_epi32((int)std::min<int64_t>(window, 1 << 30)));
  return seen;
}

// Whether some query of a block does not see some key of a block.
inline bool edged(int64_t query, int64_t key, int64_t window) {
  return key + BLOCK - 1 > query || (window && query + BLOCK - 1 - key >= window);
}

// What a block of queries needs of a block of keys: `keys` of them, in stretches of `height`; no query before `from` sees a
// key of a stretch, and none is there from `until` on.
struct Seen {
  int64_t keys, height, until, behind;
  Seen(int64_t query, int64_t count, int64_t key, bool edge)
      : keys(std::min<int64_t>(BLOCK, up(query + count - key, HALF))),
        height(edge ? HALF : BLOCK),
        until(up(count, HALF)),
        behind(key - query) {}
  int64_t from(int64_t key) const { return std::max<int64_t>(behind + key / height * height, 0) / HALF * HALF; }
};

inline int64_t first_key(int64_t query, int64_t window) {
  return window ? std::max<int64_t>(query - window + 1, 0) / BLOCK * BLOCK : 0;
}

// Pairs of rows: [keys][queries] in float32 become rows and pairs of bfloat16.
inline void interleave(V even, V odd, bf16* out) {
  const __m512i low = _mm512_cvtepu16_epi32(narrow(even)), high = _mm512_cvtepu16_epi32(narrow(odd));
  _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

void forward(const Heads& q, const Heads& k, const Heads& v, const Heads& out, float* logs, const Shape& shape,
             const Sequence& sequence, int64_t n) {
  const int64_t keys = sequence.keys(), padded = up(keys, BLOCK), wide = shape.wide;
  const float factor = shape.scale * LOG2E;
  Room<bf16> rows(padded * wide), key_rows(padded * wide), value_columns(wide * padded), queries(BLOCK * wide),
      query_pairs(BLOCK * wide), weights(BLOCK * BLOCK);
  Room<float> scores(BLOCK * BLOCK), sums(wide * BLOCK), factors(BLOCK);
  gather(v, n, sequence, 0, keys, shape, rows, padded);
  transpose_all(rows, padded, wide, value_columns);
  gather(k, n, sequence, 0, keys, shape, key_rows, padded);
  for (int64_t g = 0; g < shape.groups; g++) {
    const int64_t head = n * shape.groups + g;
    for (int64_t first = keys - sequence.queries; first < keys; first += BLOCK) {
      const int64_t count = std::min<int64_t>(BLOCK, keys - first);
      gather(q, head, sequence, first, count, shape, queries, BLOCK);
      transpose_paired(queries, wide, wide, query_pairs);
      V most[COLUMNS], total[COLUMNS];
      for (int c = 0; c < COLUMNS; c++) most[c] = all(-INFINITY), total[c] = all(0.f);
      std::memset(sums, 0, wide * BLOCK * 4);
      for (int64_t key = first_key(first, shape.window); key < first + count; key += BLOCK) {
        const bool edge = edged(first, key, shape.window);
        const Seen seen(first, count, key, edge);
        for (int64_t i = 0; i < seen.keys; i += seen.height)
          multiply(key_rows + (key + i) * wide, wide, query_pairs + 2 * seen.from(i), BLOCK, scores + i * BLOCK + seen.from(i), BLOCK,
                   seen.height, seen.until - seen.from(i), wide, false);
        V top[COLUMNS], sum[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) top[c] = most[c];
        for (int64_t i = 0; i < seen.keys; i++)
          for (int64_t c = seen.from(i) / LANES; c < COLUMNS; c++) {
            float* at = scores + i * BLOCK + c * LANES;
            if (edge)
              _mm512_store_ps(
                  at, _mm512_mask_blend_ps(sees(first + c * LANES, key + i, shape.window), all(-INFINITY), _mm512_load_ps(at)));
            top[c] = _mm512_max_ps(top[c], _mm512_load_ps(at));
          }
        bool moved = false;
        V base[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) {
          const __mmask16 none = _mm512_cmp_ps_mask(top[c], all(-INFINITY), _CMP_EQ_OQ);
          base[c] = _mm512_mul_ps(_mm512_mask_blend_ps(none, top[c], all(0.f)), all(factor));
          const V shrink = exp2(_mm512_fmsub_ps(most[c], all(factor), base[c]));
          sum[c] = _mm512_mul_ps(total[c], shrink);
          moved |= _mm512_cmp_ps_mask(top[c], most[c], _CMP_NEQ_UQ) != 0;
          _mm512_store_ps(factors + c * LANES, shrink);
          most[c] = top[c];
        }
        for (int64_t i = 0; i < seen.keys; i += 2)
          for (int64_t c = seen.from(i) / LANES; c < COLUMNS; c++) {
            V p[2];
            for (int r = 0; r < 2; r++) {
              const V s = _mm512_load_ps(scores + (i + r) * BLOCK + c * LANES);
              p[r] = exp2(_mm512_fmsub_ps(s, all(factor), base[c]));
              if (edge) p[r] = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(s, all(-INFINITY), _CMP_EQ_OQ), p[r], all(0.f));
            }
            sum[c] = _mm512_add_ps(sum[c], _mm512_add_ps(p[0], p[1]));
            interleave(p[0], p[1], weights + i * BLOCK + 2 * c * LANES);
          }
        for (int c = 0; c < COLUMNS; c++) total[c] = sum[c];
        if (moved)
          for (int64_t d = 0; d < wide; d++)
            for (int c = 0; c < COLUMNS; c++) {
              float* at = sums + d * BLOCK + c * LANES;
              _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), _mm512_load_ps(factors + c * LANES)));
            }
        for (int64_t i = 0; i < seen.keys; i += seen.height)
          multiply(value_columns + key + i, padded, weights + i * BLOCK + 2 * seen.from(i), BLOCK, sums + seen.from(i), BLOCK, wide,
                   seen.until - seen.from(i), seen.height, true);
      }
      for (int c = 0; c < COLUMNS; c++) {
        alignas(64) float tops[LANES], totals[LANES];
        _mm512_store_ps(tops, most[c]);
        _mm512_store_ps(totals, total[c]);
        _mm512_store_ps(factors + c * LANES, _mm512_div_ps(all(1.f), total[c]));
        for (int i = 0; i < LANES && c * LANES + i < count; i++)
          logs[head * shape.tokens + sequence.place(first + c * LANES + i)] = tops[i] * factor + std::log2(totals[i]);
      }
      write_rows(sums, wide, factors, queries);
      scatter(out, head, sequence, first, count, shape, queries);
    }
  }
}

// `grad_k` and `grad_v` [keys, wide] in float32, this sequence's own.
void backward(const Heads& q, const Heads& k, const Heads& v, const Heads& out, const Heads& grad, const float* logs,
              const Heads& grad_q, float* grad_k, float* grad_v, const Shape& shape, const Sequence& sequence, int64_t n) {
  const int64_t keys = sequence.keys(), padded = up(keys, BLOCK), wide = shape.wide;
  const float factor = shape.scale * LOG2E;
  Room<bf16> key_rows(padded * wide), key_columns(wide * padded), value_rows(padded * wide), queries(BLOCK * wide),
      query_columns(BLOCK * wide), query_pairs(BLOCK * wide), grads(BLOCK * wide), grad_columns(BLOCK * wide),
      grad_pairs(BLOCK * wide), outs(BLOCK * wide), weights(BLOCK * BLOCK), slopes(BLOCK * BLOCK), slope_pairs(BLOCK * BLOCK);
  Room<float> scores(BLOCK * BLOCK), moved(BLOCK * BLOCK), sums(wide * BLOCK), factors(BLOCK), log(BLOCK), level(BLOCK);
  gather(k, n, sequence, 0, keys, shape, key_rows, padded);
  transpose_all(key_rows, padded, wide, key_columns);
  gather(v, n, sequence, 0, keys, shape, value_rows, padded);
  std::memset(grad_k, 0, padded * wide * 4);
  std::memset(grad_v, 0, padded * wide * 4);
  for (int i = 0; i < BLOCK; i++) factors[i] = shape.scale;
  for (int64_t g = 0; g < shape.groups; g++) {
    const int64_t head = n * shape.groups + g;
    for (int64_t first = keys - sequence.queries; first < keys; first += BLOCK) {
      const int64_t count = std::min<int64_t>(BLOCK, keys - first);
      gather(q, head, sequence, first, count, shape, queries, BLOCK);
      gather(grad, head, sequence, first, count, shape, grads, BLOCK);
      gather(out, head, sequence, first, count, shape, outs, BLOCK);
      transpose_paired(queries, wide, wide, query_columns);
      transpose_paired(grads, wide, wide, grad_columns);
      paired(queries, BLOCK, wide, query_pairs);
      paired(grads, BLOCK, wide, grad_pairs);
      for (int i = 0; i < BLOCK; i++) {
        V sum = all(0.f);
        for (int64_t d = 0; d < wide; d += LANES)
          sum = _mm512_fmadd_ps(load(grads + i * wide + d), load(outs + i * wide + d), sum);
        level[i] = _mm512_reduce_add_ps(sum);
        log[i] = i < count ? logs[head * shape.tokens + sequence.place(first + i)] : INFINITY;
      }
      std::memset(sums, 0, wide * BLOCK * 4);
      for (int64_t key = first_key(first, shape.window); key < first + count; key += BLOCK) {
        const bool edge = edged(first, key, shape.window);
        const Seen seen(first, count, key, edge);
        for (int64_t i = 0; i < seen.keys; i += seen.height) {
          const int64_t from = seen.from(i), own = seen.until - from, to = i * BLOCK + from;
          multiply(key_rows + (key + i) * wide, wide, query_columns + 2 * from, BLOCK, scores + to, BLOCK, seen.height, own, wide, false);
          multiply(value_rows + (key + i) * wide, wide, grad_columns + 2 * from, BLOCK, moved + to, BLOCK, seen.height, own, wide, false);
        }
        for (int64_t i = 0; i < seen.keys; i += 2)
          for (int64_t c = seen.from(i) / LANES; c < COLUMNS; c++) {
            V slope[2];
            for (int r = 0; r < 2; r++) {
              const int64_t at = (i + r) * BLOCK + c * LANES;
              V p = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + at), all(factor), _mm512_load_ps(log + c * LANES)));
              if (edge) p = _mm512_maskz_mov_ps(sees(first + c * LANES, key + i + r, shape.window), p);
              store(weights + at, p);
              slope[r] = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_load_ps(moved + at), _mm512_load_ps(level + c * LANES)));
              store(slopes + at, slope[r]);
            }
            interleave(slope[0], slope[1], slope_pairs + i * BLOCK + 2 * c * LANES);
          }
        for (int64_t i = 0; i < seen.keys; i += seen.height) {
          const int64_t from = seen.from(i), own = seen.until - from, to = i * BLOCK + from;
          multiply(weights + to, BLOCK, grad_pairs + from * wide, wide, grad_v + (key + i) * wide, wide, seen.height, wide, own, true);
          multiply(slopes + to, BLOCK, query_pairs + from * wide, wide, grad_k + (key + i) * wide, wide, seen.height, wide, own, true);
          multiply(key_columns + key + i, padded, slope_pairs + to + from, BLOCK, sums + from, BLOCK, wide, own, seen.height, true);
        }
      }
      write_rows(sums, wide, factors, queries);
      scatter(grad_q, head, sequence, first, count, shape, queries);
    }
  }
}

template <typename T>
void norm_row(const T* from, const float* weight, bf16* out, float* inverse, int64_t width, float eps) {
  V sum = all(0.f);
  for (int64_t d = 0; d < width; d += LANES) sum = _mm512_fmadd_ps(load(from + d), load(from + d), sum);
  *inverse = 1.f / std::sqrt(_mm512_reduce_add_ps(sum) / width + eps);
  const V r = all(*inverse);
  for (int64_t d = 0; d < width; d += LANES) store(out + d, _mm512_mul_ps(load(weight + d), _mm512_mul_ps(load(from + d), r)));
}

template <typename T>
void normed(const T* x, const float* weight, bf16* out, float* inverse, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) norm_row(x + row * width, weight, out + row * width, inverse + row, width, eps);
}

template <typename T>
void normed_back(const bf16* out, const float* weight, const float* inverse, const bf16* grad, const float* beside, T* grad_x,
                 bf16* narrow, float* grad_weight, int64_t rows, int64_t width, int threads) {
  constexpr int64_t PIECE = 128;
  const int64_t pieces = (rows + PIECE - 1) / PIECE;
  Room<float> parts(pieces * width), unweighted(width);
  for (int64_t d = 0; d < width; d += LANES) store(unweighted + d, _mm512_div_ps(all(1.f), load(weight + d)));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t piece = 0; piece < pieces; piece++) {
    float* part = parts + piece * width;
    std::memset(part, 0, width * 4);
    for (int64_t row = piece * PIECE; row < std::min(rows, (piece + 1) * PIECE); row++) {
      const bf16 *normal = out + row * width, *g = grad + row * width;
      V along = all(0.f);
      for (int64_t d = 0; d < width; d += LANES) along = _mm512_fmadd_ps(load(g + d), load(normal + d), along);
      const V r = all(inverse[row]), back = all(_mm512_reduce_add_ps(along) / width);
      for (int64_t d = 0; d < width; d += LANES) {
        const V slope = load(g + d), value = _mm512_mul_ps(load(normal + d), load(unweighted + d));
        store(part + d, _mm512_fmadd_ps(slope, value, load(part + d)));
        const V inner = _mm512_fnmadd_ps(value, back, _mm512_mul_ps(slope, load(weight + d)));
        V made = _mm512_mul_ps(inner, r);
        if (beside) made = _mm512_add_ps(made, load(beside + row * width + d));
        store(grad_x + row * width + d, made);
        if (narrow) store(narrow + row * width + d, made);
      }
    }
  }
  std::memset(grad_weight, 0, width * 4);
  for (int64_t piece = 0; piece < pieces; piece++)
    for (int64_t d = 0; d < width; d++) grad_weight[d] += parts[piece * width + d];
}

// x · weightᵀ + factor · y · otherᵀ, as `linear` says; `take(first row, rows, first column, sums [rows, PANEL])` takes it, for as many
// panels as go `together` in one thread and in their order. x goes by in pieces of its width that stay in a core's cache while all
// its panels pass.
template <class Take>
void product(const bf16* x, const bf16* packed, const bf16* y, const bf16* other, float factor, int64_t rows, int64_t inputs,
             int64_t outputs, int64_t stride, int64_t more, int64_t y_stride, int64_t together, int threads, const Take& take) {
  constexpr int64_t ROWS = 256, SHARES = 8;
  const int64_t deep = up(inputs, 32), thin = up(more, 32), panels = up(outputs, PANEL) / PANEL;
  const int64_t blocks = std::max<int64_t>(up(rows, ROWS) / ROWS, 1), units = up(panels, together) / together;
  const int64_t groups = std::min(units, up(SHARES * threads, blocks) / blocks);  // of units, so that no thread waits long
  const int64_t held = deep > DEEP ? up(units, groups) / groups * together : 1;   // panels whose sums wait for the next piece
  // rows [from, count) of x, filled up with zeros to whole tiles
  const auto fill = [](const bf16* x, int64_t stride, int64_t from, int64_t count, int64_t width, int64_t wide, bf16* to) {
    for (int64_t i = from; i < up(count, TALL); i++, to += wide) {
      const int64_t given = i < count ? width : 0;
      std::memcpy(to, x + i * stride, 2 * given);
      std::memset(to + given, 0, 2 * (wide - given));
    }
  };
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    Room<bf16> filled((inputs == deep ? TALL : ROWS) * deep), beside(ROWS * thin);
    Room<float> sums(held * ROWS * PANEL);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < blocks * groups; task++) {
      const int64_t first = task / groups * ROWS, group = task % groups, count = std::min(ROWS, rows - first);
      const int64_t from_panel = units * group / groups * together;
      const int64_t to_panel = std::min(panels, units * (group + 1) / groups * together);
      const bf16* from = x + first * stride;
      // rows that are read where they lie, and those that are filled up
      const int64_t there = inputs == deep ? count / TALL * TALL : 0, left = up(count, TALL) - there;
      fill(from, stride, there, count, inputs, deep, filled);
      if (y) fill(y + first * y_stride, y_stride, 0, count, more, thin, beside);
      for (int64_t at = 0; at < deep; at += DEEP) {
        const int64_t piece = std::min(DEEP, deep - at);
        for (int64_t panel = from_panel; panel < to_panel; panel++) {
          const bf16* own = packed + panel * PANEL * deep + at * PANEL;
          float* sum = sums + (panel - from_panel) % held * ROWS * PANEL;
          if (y && at == 0) {
            multiply(beside, thin, other + panel * PANEL * thin, PANEL, sum, PANEL, there + left, PANEL, up(more, STEP), false);
            if (factor != 1)
              for (int64_t i = 0; i < count * PANEL; i += LANES)
                _mm512_store_ps(sum + i, _mm512_mul_ps(_mm512_load_ps(sum + i), all(factor)));
          }
          multiply(from + at, stride, own, PANEL, sum, PANEL, there, PANEL, up(std::min(piece, inputs - at), STEP), y || at);
          multiply(filled + at, deep, own, PANEL, sum + there * PANEL, PANEL, left, PANEL, up(std::min(piece, inputs - at), STEP),
                   y || at);
          if (at + piece == deep) take(first, count, panel * PANEL, sum);
        }
      }
      _mm_sfence();  // other threads read what went past the caches
    }
  }
}

}  // namespace

extern "C" {

// What the code was made for: 2 for AMX, 1 for AVX512 alone; 0 where the system does not let it run.
int ready() {
#ifdef __AMX_BF16__
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 ? 2 : 0;
#else
  return 1;
#endif
}

void attention_forward(Heads q, Heads k, Heads v, Heads out, float* logs, Shape shape, const Sequence* sequences, int64_t count,
                       int threads) {
  const int64_t tasks = count * shape.key_heads;
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; task++)
      forward(q, k, v, out, logs, shape, sequences[task / shape.key_heads], task % shape.key_heads);
  }
}

void attention_backward(Heads q, Heads k, Heads v, Heads out, Heads grad, const float* logs, Heads grad_q, Heads grad_k,
                        Heads grad_v, Shape shape, const Sequence* sequences, int64_t count, int threads) {
  const int64_t tasks = count * shape.key_heads;
  // of each sequence and key head, its keys' gradients; a token's are in each sequence that it answers in
  std::vector<int64_t> starts(tasks + 1, 0);
  for (int64_t task = 0; task < tasks; task++)
    starts[task + 1] = starts[task] + up(sequences[task / shape.key_heads].keys(), BLOCK) * shape.wide;
  Room<float> keys(starts[tasks]), values(starts[tasks]);
  // where they lie for each token of the row, one list behind the other: its sequence and its place there
  std::vector<int64_t> lists(shape.tokens + 1, 0);
  for (int64_t s = 0; s < count; s++)
    for (int64_t t = 0; t < sequences[s].keys(); t++) lists[sequences[s].place(t) + 1]++;
  for (int64_t token = 0; token < shape.tokens; token++) lists[token + 1] += lists[token];
  std::vector<std::pair<int64_t, int64_t>> met(lists[shape.tokens]);
  std::vector<int64_t> filled(lists);
  for (int64_t s = 0; s < count; s++)
    for (int64_t t = 0; t < sequences[s].keys(); t++) met[filled[sequences[s].place(t)]++] = {s, t};
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; task++)
      backward(q, k, v, out, grad, logs, grad_q, keys + starts[task], values + starts[task], shape,
               sequences[task / shape.key_heads], task % shape.key_heads);
#pragma omp for schedule(static)
    for (int64_t token = 0; token < shape.tokens; token++)
      for (int64_t n = 0; n < shape.key_heads; n++)
        for (int64_t d = 0; d < shape.wide; d += LANES) {
          V of_key = all(0.f), of_value = all(0.f);
          for (int64_t m = lists[token]; m < lists[token + 1]; m++) {
            const int64_t at = starts[met[m].first * shape.key_heads + n] + met[m].second * shape.wide + d;
            of_key = _mm512_add_ps(of_key, _mm512_load_ps(keys + at));
            of_value = _mm512_add_ps(of_value, _mm512_load_ps(values + at));
          }
          bf16 part[2][LANES];
          store(part[0], _mm512_mul_ps(of_key, all(shape.scale)));
          store(part[1], of_value);
          const int64_t own = std::min<int64_t>(LANES, shape.width - d);
          if (own > 0) {
            std::memcpy(grad_k.row(n, token) + d, part[0], 2 * own);
            std::memcpy(grad_v.row(n, token) + d, part[1], 2 * own);
          }
        }
  }
}

// Attention of one token a row: q [rows][heads][width], k and v [rows][key_heads][keys][width] by strides, width a multiple of
// 32; mask [rows][keys], bytes, 0 where a key is not seen, or null; out [rows][heads][width]. A row that sees nothing gets zeros.
void answer(const bf16* q, int64_t q_row, int64_t q_head, const bf16* k, int64_t k_row, int64_t k_head, int64_t k_token,
            const bf16* v, int64_t v_row, int64_t v_head, int64_t v_token, const uint8_t* mask, int64_t mask_row, bf16* out,
            int64_t rows, int64_t key_heads, int64_t groups, int64_t keys, int64_t width, float scale, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t filled = up(keys, LANES), pieces = width / LANES;
    Room<float> weights(groups * filled), sums(groups * width);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < rows * key_heads; task++) {
      const int64_t row = task / key_heads, n = task % key_heads;
      const uint8_t* seen = mask ? mask + row * mask_row : nullptr;
      const bf16 *asks = q + row * q_row + n * groups * q_head, *key = k + row * k_row + n * k_head;
      for (int64_t t = 0; t < filled; t++)
        for (int64_t g = 0; g < groups; g++) {
          V sum = all(0.f);
          if (t >= keys || (seen && !seen[t])) {
            weights[g * filled + t] = -INFINITY;
            continue;
          }
          for (int64_t d = 0; d < width; d += 2 * LANES)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(asks + g * q_head + d),
                                   (__m512bh)_mm512_loadu_si512(key + t * k_token + d));
          weights[g * filled + t] = _mm512_reduce_add_ps(sum) * scale * LOG2E;
        }
      for (int64_t g = 0; g < groups; g++) {
        float* own = weights + g * filled;
        V most = all(-INFINITY), total = all(0.f);
        for (int64_t t = 0; t < filled; t += LANES) most = _mm512_max_ps(most, _mm512_load_ps(own + t));
        const float top = _mm512_reduce_max_ps(most);
        for (int64_t t = 0; t < filled; t += LANES) {
          const V score = _mm512_load_ps(own + t);
          const __mmask16 there = _mm512_cmp_ps_mask(score, all(-INFINITY), _CMP_NEQ_UQ);
          const V weight = _mm512_maskz_mov_ps(there, exp2(_mm512_sub_ps(score, all(top))));
          total = _mm512_add_ps(total, weight);
          _mm512_store_ps(own + t, weight);
        }
        const float sum = _mm512_reduce_add_ps(total);
        for (int64_t t = 0; t < filled; t += LANES)
          _mm512_store_ps(own + t, _mm512_mul_ps(_mm512_load_ps(own + t), all(1.f / sum)));
      }
      std::memset(sums, 0, groups * width * 4);
      const bf16* value = v + row * v_row + n * v_head;
      for (int64_t t = 0; t < keys; t++) {
        if (seen && !seen[t]) continue;
        for (int64_t piece = 0; piece < pieces; piece++) {
          const V part = load(value + t * v_token + piece * LANES);
          for (int64_t g = 0; g < groups; g++) {
            float* to = sums + g * width + piece * LANES;
            _mm512_store_ps(to, _mm512_fmadd_ps(all(weights[g * filled + t]), part, _mm512_load_ps(to)));
          }
        }
      }
      bf16* to = out + (row * key_heads + n) * groups * width;
      for (int64_t d = 0; d < groups * width; d += LANES) store(to + d, _mm512_load_ps(sums + d));
    }
  }
}

// out[c][r] = x[r][c]; rows of `out` are `out_stride` apart, up to a block more than there are rows of x, and end with zeros.
void transposed(const bf16* x, bf16* out, int64_t rows, int64_t columns, int64_t stride, int64_t out_stride, int threads) {
  const int64_t across = up(columns, 32) / 32;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < up(rows, 32) / 32 * across; block++) {
    const int64_t i = block / across * 32, c = block % across * 32;
    transpose_block(x + i * stride + c, stride, std::min<int64_t>(32, rows - i), std::min<int64_t>(32, columns - c),
                    out + c * out_stride + i, out_stride, std::min<int64_t>(32, out_stride - i));
  }
}

// A weight [outputs, inputs], or [inputs, outputs] if `across`, as `linear` reads it: of each panel of outputs
// [deep / 2][PANEL][2], filled up with zeros.
void pack(const bf16* weight, bf16* packed, int64_t inputs, int64_t outputs, int64_t across, int threads) {
  const int64_t deep = up(inputs, 32);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t panel = 0; panel < up(outputs, PANEL) / PANEL; panel++) {
    bf16* to = packed + panel * PANEL * deep;
    const int64_t column = panel * PANEL;
    if (across) {
      for (int64_t d = 0; d < deep; d += 2) {
        const bf16 *row = weight + d * outputs + column, *next = d + 1 < inputs ? row + outputs : nullptr;
        interleave(d < inputs ? row : nullptr, next, within(column, outputs), to + d * PANEL);
      }
      continue;
    }
    for (int64_t d = 0; d < deep; d += 32)
      for (int64_t half = 0; half < PANEL; half += 16) {
        __m512i r[16];
        for (int64_t i = 0; i < 16; i++) {
          const int64_t output = column + half + i;
          const __mmask32 given = output >= outputs ? 0 : d + 32 <= inputs ? ~0u : (1u << (inputs - d)) - 1;
          r[i] = _mm512_maskz_loadu_epi16(given, given ? weight + output * inputs + d : weight);
        }
        transpose(r);
        for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(to + d * PANEL + 2 * half + i * 2 * PANEL, r[i]);
      }
  }
}

// out = x · weightᵀ + factor · y · otherᵀ + bias, x [rows, inputs], y [rows, more], both weights packed; y and bias [outputs] may
// be null. A row's sums are added up in one order, however many rows there are.
void linear(const bf16* x, const bf16* packed, const bf16* bias, const bf16* y, const bf16* other, float factor, bf16* out,
            int64_t rows, int64_t inputs, int64_t outputs, int64_t stride, int64_t more, int64_t y_stride, int64_t out_stride,
            int threads) {
  product(x, packed, y, other, factor, rows, inputs, outputs, stride, more, y_stride, 1, threads,
          [&](int64_t first, int64_t count, int64_t column, const float* sums) {
            const __mmask32 given = within(column, outputs);
            V added[2] = {all(0.f), all(0.f)};
            if (bias) {
              const __m512i both = _mm512_maskz_loadu_epi16(given, bias + column);
              added[0] = widened(_mm512_castsi512_si256(both));
              added[1] = widened(_mm512_extracti64x4_epi64(both, 1));
            }
            for (int64_t i = 0; i < count; i++) {
              const float* sum = sums + i * PANEL;
              bf16* to = out + (first + i) * out_stride + column;
              const __m512i made = (__m512i)_mm512_cvtne2ps_pbh(_mm512_add_ps(_mm512_load_ps(sum + LANES), added[1]),
                                                                _mm512_add_ps(_mm512_load_ps(sum), added[0]));
              write(to, given, made);
            }
          });
}

// out (+)= x · weightᵀ in float32, out [rows, outputs] in one piece: a weight's gradient, x being what came back, transposed.
void linear_wide(const bf16* x, const bf16* packed, float* out, int64_t add, int64_t rows, int64_t inputs, int64_t outputs,
                 int64_t stride, int threads) {
  product(x, packed, nullptr, nullptr, 1.f, rows, inputs, outputs, stride, 0, 0, 1, threads,
          [&](int64_t first, int64_t count, int64_t column, const float* sums) {
            const __mmask32 given = within(column, outputs);
            for (int64_t i = 0; i < count; i++)
              for (int half = 0; half < 2; half++) {
                const __mmask16 own = given >> (half * LANES);
                float* to = out + (first + i) * outputs + column + half * LANES;
                const V sum = _mm512_load_ps(sums + i * PANEL + half * LANES);
                _mm512_mask_storeu_ps(to, own, add ? _mm512_add_ps(sum, _mm512_maskz_loadu_ps(own, to)) : sum);
              }
          });
}

// out (+)= factor · aᵀ · b in float32, a [rows, m], b [rows, n], m small: the gradient of a thin weight, [m, n], or [n, m] if
// `across`.
void crossed(const bf16* a, const bf16* b, float factor, float* out, int64_t add, int64_t across, int64_t rows, int64_t m,
             int64_t n, int64_t a_stride, int64_t b_stride, int threads) {
  constexpr int64_t PIECE = 64;
  const int64_t high = up(m, TALL), deep = up(std::max<int64_t>(rows, 1), PIECE);
  Room<bf16> turned(high * deep);
  std::memset(turned, 0, high * deep * 2);
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    Room<bf16> pairs(PIECE * PANEL);
    Room<float> sums(high * PANEL);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < rows; first += 32)
      for (int64_t c = 0; c < m; c += 32)
        transpose_block(a + first * a_stride + c, a_stride, std::min<int64_t>(32, rows - first), std::min<int64_t>(32, m - c),
                        turned + c * deep + first, deep, 32);
#pragma omp for schedule(static)
    for (int64_t column = 0; column < n; column += PANEL) {
      const __mmask32 given = within(column, n);
      for (int64_t first = 0; first < deep; first += PIECE) {
        for (int64_t i = first; i < first + PIECE; i += 2) {
          const bf16* row = b + i * b_stride + column;
          interleave(i < rows ? row : nullptr, i + 1 < rows ? row + b_stride : nullptr, given, pairs + (i - first) * PANEL);
        }
        multiply(turned + first, deep, pairs, PANEL, sums, PANEL, high, PANEL, PIECE, first > 0);
      }
      const int64_t own = std::min<int64_t>(PANEL, n - column);
      for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < own; j++) {
          float& to = out[across ? (column + j) * m + i : i * n + column + j];
          to = factor * sums[i * PANEL + j] + (add ? to : 0.f);
        }
    }
  }
}

// A linear layer with an adapter: inner = x · downᵀ, out = x · weightᵀ + factor · inner · riseᵀ + bias. x [rows, inputs], down
// [rank, inputs], rise [outputs, rank]; the weight packed.
void adapted_forward(const bf16* x, const bf16* packed, const bf16* bias, const bf16* down, const bf16* rise, float factor,
                     bf16* inner, bf16* out, int64_t rows, int64_t inputs, int64_t outputs, int64_t rank, int64_t stride,
                     int threads) {
  Room<bf16> downs(up(rank, PANEL) * up(inputs, 32)), rises(up(outputs, PANEL) * up(rank, 32));
  pack(down, downs, inputs, rank, false, threads);
  pack(rise, rises, rank, outputs, false, threads);
  linear(x, downs, nullptr, nullptr, nullptr, 1.f, inner, rows, inputs, rank, stride, 0, 0, rank, threads);
  linear(x, packed, bias, inner, rises, factor, out, rows, inputs, outputs, stride, rank, rank, outputs, threads);
}

// Back: of_inner = grad · rise, of_x = grad · weight + factor · of_inner · down where the weight, packed across, is given, and in
// float32 of_down (+)= factor · of_innerᵀ · x, of_rise (+)= factor · gradᵀ · inner.
void adapted_backward(const bf16* grad, const bf16* x, const bf16* inner, const bf16* packed, const bf16* down, const bf16* rise,
                      float factor, bf16* of_inner, bf16* of_x, float* of_down, float* of_rise, int64_t add_down,
                      int64_t add_rise, int64_t rows, int64_t inputs, int64_t outputs, int64_t rank, int64_t grad_stride,
                      int64_t x_stride, int threads) {
  Room<bf16> downs(up(inputs, PANEL) * up(rank, 32)), rises(up(rank, PANEL) * up(outputs, 32));
  pack(rise, rises, outputs, rank, true, threads);
  linear(grad, rises, nullptr, nullptr, nullptr, 1.f, of_inner, rows, outputs, rank, grad_stride, 0, 0, rank, threads);
  if (packed) {
    pack(down, downs, rank, inputs, true, threads);
    linear(grad, packed, nullptr, of_inner, downs, factor, of_x, rows, outputs, inputs, grad_stride, rank, rank, inputs, threads);
  }
  crossed(of_inner, x, factor, of_down, add_down, false, rows, rank, inputs, rank, x_stride, threads);
  crossed(inner, grad, factor, of_rise, add_rise, true, rows, rank, outputs, rank, grad_stride, threads);
}

// Of each row of scores, factor · x · weightᵀ [rows, words], the log of its softmax at the row's target, from the products' float32
// sums: in bfloat16 a score of 20 is off by up to 0.06, which over an answer's tokens makes half a nat. The weight is given packed
// and by rows. If `grad` [rows, words] is given, it becomes the log's gradient in x · weightᵀ, factor · (1 at the target − softmax);
// until then it holds the others' scores, less the target's, so that those that count are close to 0 and little is lost. Powers and
// logs are of 2.
void token_logps(const bf16* x, const bf16* packed, const bf16* weight, const int64_t* targets, float* logps, bf16* grad,
                 int64_t rows, int64_t inputs, int64_t words, int64_t stride, int64_t weight_stride, float factor, int threads) {
  constexpr int64_t PANELS = 32, SPAN = PANELS * PANEL;  // words whose powers are added up in one place
  constexpr float ROOM = 60.f;                           // how far above its base a span's power may be
  const int64_t spans = up(words, SPAN) / SPAN;
  const V unit = all(factor * LOG2E);
  Room<float> wanted(rows), bases(spans * rows), powers(spans * rows * LANES);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const bf16 *own = x + row * stride, *of_target = weight + targets[row] * weight_stride;
    V sum = all(0.f);
    for (int64_t i = 0; i < inputs; i += LANES)
      sum = _mm512_fmadd_ps(load_some(own + i, inputs - i), load_some(of_target + i, inputs - i), sum);
    wanted[row] = _mm512_reduce_add_ps(sum) * factor * LOG2E;
  }
  product(x, packed, nullptr, nullptr, 1.f, rows, inputs, words, stride, 0, 0, PANELS, threads,
          [&](int64_t first, int64_t count, int64_t column, const float* sums) {
            const __mmask32 given = within(column, words);
            const __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            float *base = bases + column / SPAN * rows + first, *power = powers + (column / SPAN * rows + first) * LANES;
            for (int64_t i = 0; i < count; i++) {
              if (column % SPAN == 0) base[i] = 0.f, _mm512_store_ps(power + i * LANES, all(0.f));
              const __m512i target = _mm512_set1_epi32((int)(targets[first + i] - column));
              V score[2];
              for (int half = 0; half < 2; half++) {
                const V sum = _mm512_load_ps(sums + i * PANEL + half * LANES);
                const __mmask16 other = _mm512_cmpneq_epi32_mask(target, _mm512_add_epi32(place, _mm512_set1_epi32(half * LANES)));
                const V less = _mm512_fmsub_ps(sum, unit, all(wanted[first + i]));
                score[half] = _mm512_mask_mov_ps(all(-INFINITY), other & (given >> (half * LANES)), less);
              }
              const V top = _mm512_max_ps(score[0], score[1]);
              V before = _mm512_load_ps(power + i * LANES);
              if (_mm512_cmp_ps_mask(top, all(base[i] + ROOM), _CMP_GT_OQ)) {
                const float next = _mm512_reduce_max_ps(top);
                before = _mm512_mul_ps(before, exp2(all(base[i] - next)));
                base[i] = next;
              }
              const V more = _mm512_add_ps(exp2(_mm512_sub_ps(score[0], all(base[i]))), exp2(_mm512_sub_ps(score[1], all(base[i]))));
              _mm512_store_ps(power + i * LANES, _mm512_add_ps(before, more));
              if (grad)
                write(grad + (first + i) * words + column, given, (__m512i)_mm512_cvtne2ps_pbh(score[1], score[0]));
            }
          });
#pragma omp parallel num_threads(threads)
  {
    constexpr int64_t TOGETHER = 4;  // sums, so that none waits for the one before
    Room<float> shares(grad ? up(words, TOGETHER * LANES) : 0);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      float top = 0.f, sum = 0.f;
      for (int64_t span = 0; span < spans; span++) top = std::max(top, bases[span * rows + row]);
      for (int64_t span = 0; span < spans; span++)
        sum += _mm512_reduce_add_ps(_mm512_load_ps(powers + (span * rows + row) * LANES)) * std::exp2(bases[span * rows + row] - top);
      // with the target's own power, which is 1: among it a small sum would vanish, and it among a large one
      const float log = top > 0 ? -top - std::log2(sum) : -std::log1p(sum) * LOG2E;
      logps[row] = log / LOG2E;
      if (!grad) continue;
      // the others share out what the target lacks: scores in bfloat16 decide how, not how much
      bf16* own = grad + row * words;
      V sums[TOGETHER] = {all(0.f), all(0.f), all(0.f), all(0.f)};
      for (int64_t at = 0; at < words; at += LANES) {
        const V share = exp2(_mm512_add_ps(load_some(own + at, words - at), all(log)));
        V& sum = sums[at / LANES % TOGETHER];
        sum = _mm512_add_ps(sum, words - at < LANES ? _mm512_maskz_mov_ps(first_of(words - at), share) : share);
        _mm512_store_ps(shares + at, share);
      }
      const float others = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
      const float lacks = -std::expm1(logps[row]);
      const V each = all(-factor * lacks / others);
      for (int64_t at = 0; at < words; at += LANES)
        _mm256_mask_storeu_epi16(own + at, first_of(words - at), narrow(_mm512_mul_ps(_mm512_load_ps(shares + at), each)));
      own[targets[row]] = _mm256_extract_epi16(narrow(all(factor * lacks)), 0);
    }
  }
}

// Of each head's width the halves (a, b): out = (a cos − b sin, b cos + a sin), cos and sin [tokens, width]; with `back` the
// gradient (a cos + b sin, b cos − a sin), each with the factors that its half met. Half a width is a multiple of 16.
void rotate(Heads x, const float* cos, const float* sin, Heads out, int64_t heads, int64_t tokens, int64_t width, int64_t back,
            int threads) {
  const int64_t half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t head = 0; head < heads; head++) {
      const bf16* from = x.row(head, token);
      bf16* to = out.row(head, token);
      for (int64_t d = 0; d < half; d += LANES) {
        const float *c = cos + token * width + d, *s = sin + token * width + d;
        const V a = load(from + d), b = load(from + half + d);
        const V of_a = back ? load(s + half) : _mm512_sub_ps(all(0.f), load(s));
        const V of_b = back ? _mm512_sub_ps(all(0.f), load(s)) : load(s + half);
        store(to + d, _mm512_fmadd_ps(b, of_a, _mm512_mul_ps(a, load(c))));
        store(to + half + d, _mm512_fmadd_ps(a, of_b, _mm512_mul_ps(b, load(c + half))));
      }
    }
}

// out = gate's silu times up, each rounded as torch does; n numbers, a multiple of 16.
void gated_forward(const bf16* gate, const bf16* up, bf16* out, int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; i += LANES) {
    const V x = load(gate + i);
    const V y = rounded(_mm512_mul_ps(x, logistic(x)));
    store(out + i, _mm512_mul_ps(y, load(up + i)));
  }
}

void gated_backward(const bf16* gate, const bf16* up, const bf16* grad, bf16* grad_gate, bf16* grad_up, int64_t n,
                    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; i += LANES) {
    const V x = load(gate + i), g = load(grad + i), s = logistic(x);
    store(grad_up + i, _mm512_mul_ps(g, rounded(_mm512_mul_ps(x, s))));
    const V within = rounded(_mm512_mul_ps(g, load(up + i)));
    const V slope = _mm512_mul_ps(s, _mm512_fmadd_ps(x, _mm512_sub_ps(all(1.f), s), all(1.f)));
    store(grad_gate + i, _mm512_mul_ps(within, slope));
  }
}

// out = weight * x / sqrt(mean(x²) + eps), rows of `width` numbers, a multiple of 16. `x` is bfloat16, or float32 if `wide`.
// `inverse` [rows]: 1 / sqrt(…).
void norm_forward(const void* x, const float* weight, bf16* out, float* inverse, int64_t rows, int64_t width, float eps,
                  int64_t wide, int threads) {
  if (wide)
    normed((const float*)x, weight, out, inverse, rows, width, eps, threads);
  else
    normed((const bf16*)x, weight, out, inverse, rows, width, eps, threads);
}

// The same of a sum, which is `sums` then: x in float32 and `more` in bfloat16.
void norm_of_sum(const float* x, const bf16* more, float* sums, const float* weight, bf16* out, float* inverse, int64_t rows,
                 int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t at = row * width;
    for (int64_t d = at; d < at + width; d += LANES) store(sums + d, _mm512_add_ps(load(x + d), load(more + d)));
    norm_row(sums + at, weight, out + at, inverse + row, width, eps);
  }
}

// From what came out, which the next products keep in any case. `grad_x` is as wide as x was, `grad_weight` [width]. If they are
// given: `beside`, what else came back to x, is added, and `narrow` is `grad_x` in bfloat16.
void norm_backward(const bf16* out, const float* weight, const float* inverse, const bf16* grad, const float* beside,
                   void* grad_x, bf16* narrow, float* grad_weight, int64_t rows, int64_t width, int64_t wide, int threads) {
  if (wide)
    normed_back(out, weight, inverse, grad, beside, (float*)grad_x, narrow, grad_weight, rows, width, threads);
  else
    normed_back(out, weight, inverse, grad, beside, (bf16*)grad_x, narrow, grad_weight, rows, width, threads);
}

// x in float32 plus y in bfloat16; n numbers, a multiple of 16.
void added(const float* x, const bf16* y, float* out, int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; i += LANES) store(out + i, _mm512_add_ps(load(x + i), load(y + i)));
}

}  // extern "C"
