// Sixteen lanes in one register: x86 with AVX-512 VNNI. See lanes.h.

#pragma once

constexpr int TILE = 12;

struct Words { __m512i v; };
struct Floats { __m512 v; };

inline Words load_words(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline void store_words(uint8_t* to, Words a) { _mm512_storeu_si512(to, a.v); }
inline Words low_nibbles(Words a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Words high_nibbles(Words a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }

inline Floats load_floats(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store_floats(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }
inline Floats fill(float a) { return {_mm512_set1_ps(a)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats fnma(Floats a, Floats b, Floats c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }

inline Floats low_bf16(Words a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
inline Floats high_bf16(Words a) {
    return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(int(0xffff0000))))};
}
template <int BITS>
Floats field(Words a, int index) {
    __m512i moved = _mm512_srl_epi32(a.v, _mm_cvtsi32_si128(index * BITS));
    return {_mm512_cvtepi32_ps(_mm512_and_si512(moved, _mm512_set1_epi32((1 << BITS) - 1)))};
}

inline void transpose(const uint8_t* at, int64_t stride, Words (&out)[4]) {
    __m512i rows[4];  // rows r, r + 4, r + 8 and r + 12
    for (int r = 0; r < 4; r++) {
        auto row = [&](int i) { return _mm_loadu_si128((const __m128i*)(at + (r + i) * stride)); };
        __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(4), 1);
        __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(row(8)), row(12), 1);
        rows[r] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpackhi_epi32(rows[0], rows[1]);
    __m512i c = _mm512_unpacklo_epi32(rows[2], rows[3]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    out[0].v = _mm512_unpacklo_epi64(a, c);
    out[1].v = _mm512_unpackhi_epi64(a, c);
    out[2].v = _mm512_unpacklo_epi64(b, d);
    out[3].v = _mm512_unpackhi_epi64(b, d);
}

inline Floats to_floats(Words a) { return {_mm512_cvtepi32_ps(a.v)}; }

template <int BITS, int ROWS>
void dots(const uint8_t* codes, const int8_t* x, const int8_t* more, Words (&sums)[ROWS]) {
    for (int m = 0; m < ROWS; m++) sums[m].v = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++) {
        __m512i w = _mm512_load_si512(codes + quad * 64);
        const int32_t* four = (const int32_t*)((quad < 4 ? x : more) + quad % 4 * 4 * ROWS);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; m++) sums[m].v = _mm512_dpbusd_epi32(sums[m].v, w, _mm512_set1_epi32(four[m]));
    }
}

// The sum of the four words of each quarter of a, b, c and d, in the quarters of the result.
inline __m512i sums_of_quarters(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

template <int BITS>
void row_dots(const uint8_t* codes, int64_t stride, const int8_t* x, const int8_t* more, int32_t* sums) {
    __m512i rows[4];  // a quarter is a block
    for (int r = 0; r < 4; r++, codes += stride) {
        auto dot = [&](__m512i sum, __m512i w, const int8_t* with) {
            return _mm512_dpbusd_epi32(sum, w, _mm512_loadu_si512(with));
        };
        Words w = load_words(codes);
        if (BITS == 4) {
            rows[r] = dot(dot(_mm512_setzero_si512(), low_nibbles(w).v, x), high_nibbles(w).v, more);
        } else {
            __m512i a = dot(_mm512_setzero_si512(), w.v, x);
            __m512i b = dot(_mm512_setzero_si512(), load_words(codes + 64).v, x + 64);
            rows[r] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
        }
    }
    __m512i found = sums_of_quarters(rows[0], rows[1], rows[2], rows[3]);
    _mm_storeu_si128((__m128i*)sums, _mm512_castsi512_si128(found));
    _mm_storeu_si128((__m128i*)(sums + LANES), _mm512_extracti32x4_epi32(found, 1));
    _mm_storeu_si128((__m128i*)(sums + 2 * LANES), _mm512_extracti32x4_epi32(found, 2));
    _mm_storeu_si128((__m128i*)(sums + 3 * LANES), _mm512_extracti32x4_epi32(found, 3));
}
