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
void row_dots(const uint8_t* codes, const int8_t* x, const int8_t* more, int32_t* sums) {
    __m512i part[BITS];
    for (int i = 0; i < BITS; i++) {
        Words w = load_words(codes + 64 * i);
        __m512i dot = _mm512_dpbusd_epi32(
            _mm512_setzero_si512(), BITS == 4 ? low_nibbles(w).v : w.v, _mm512_loadu_si512(x + 64 * i));
        part[i] = BITS == 4 ? _mm512_dpbusd_epi32(dot, high_nibbles(w).v, _mm512_loadu_si512(more + 64 * i)) : dot;
    }
    __m512i found = sums_of_quarters(part[0], part[1], part[2], part[3]);  // a quarter is a block, or half of one
    __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    if (BITS == 8) {
        __m512i others = sums_of_quarters(part[BITS - 4], part[BITS - 3], part[BITS - 2], part[BITS - 1]);
        found = _mm512_add_epi32(
            _mm512_shuffle_i32x4(found, others, 0x88), _mm512_shuffle_i32x4(found, others, 0xdd));
        order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    }
    _mm512_storeu_si512(sums, _mm512_permutexvar_epi32(order, found));
}
