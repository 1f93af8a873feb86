// Sixteen lanes in two registers: x86 with AVX2, with or without AVX-VNNI. See lanes.h.

#pragma once

constexpr int TILE = 4;

struct Words { __m256i v[2]; };
struct Floats { __m256 v[2]; };

// The same on both registers.
template <typename To, typename F>
To both(F f) { return {{f(0), f(1)}}; }

inline Words load_words(const uint8_t* from) {
    return both<Words>([&](int h) { return _mm256_loadu_si256((const __m256i*)from + h); });
}
inline void store_words(uint8_t* to, Words a) {
    for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i*)to + h, a.v[h]);
}
inline Words low_nibbles(Words a) {
    return both<Words>([&](int h) { return _mm256_and_si256(a.v[h], _mm256_set1_epi8(15)); });
}
inline Words high_nibbles(Words a) {
    return both<Words>([&](int h) { return _mm256_and_si256(_mm256_srli_epi16(a.v[h], 4), _mm256_set1_epi8(15)); });
}

inline Floats load_floats(const float* from) {
    return both<Floats>([&](int h) { return _mm256_loadu_ps(from + 8 * h); });
}
inline void store_floats(float* to, Floats a) {
    for (int h = 0; h < 2; h++) _mm256_storeu_ps(to + 8 * h, a.v[h]);
}
inline Floats fill(float a) { return both<Floats>([&](int) { return _mm256_set1_ps(a); }); }
inline Floats fma(Floats a, Floats b, Floats c) {
    return both<Floats>([&](int h) { return _mm256_fmadd_ps(a.v[h], b.v[h], c.v[h]); });
}
inline Floats fnma(Floats a, Floats b, Floats c) {
    return both<Floats>([&](int h) { return _mm256_fnmadd_ps(a.v[h], b.v[h], c.v[h]); });
}

inline Floats low_bf16(Words a) {
    return both<Floats>([&](int h) { return _mm256_castsi256_ps(_mm256_slli_epi32(a.v[h], 16)); });
}
inline Floats high_bf16(Words a) {
    const __m256i upper = _mm256_set1_epi32(int(0xffff0000));
    return both<Floats>([&](int h) { return _mm256_castsi256_ps(_mm256_and_si256(a.v[h], upper)); });
}
template <int BITS>
Floats field(Words a, int index) {
    const __m256i mask = _mm256_set1_epi32((1 << BITS) - 1);
    const __m128i shift = _mm_cvtsi32_si128(index * BITS);
    return both<Floats>(
        [&](int h) { return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(a.v[h], shift), mask)); });
}

inline void transpose(const uint8_t* at, int64_t stride, Words (&out)[4]) {
    for (int h = 0; h < 2; h++) {
        __m256i rows[4];  // rows r and r + 4 of these eight
        for (int r = 0; r < 4; r++) {
            const uint8_t* row = at + (8 * h + r) * stride;
            __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)row));
            rows[r] = _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i*)(row + 4 * stride)), 1);
        }
        __m256i a = _mm256_unpacklo_epi32(rows[0], rows[1]), b = _mm256_unpackhi_epi32(rows[0], rows[1]);
        __m256i c = _mm256_unpacklo_epi32(rows[2], rows[3]), d = _mm256_unpackhi_epi32(rows[2], rows[3]);
        out[0].v[h] = _mm256_unpacklo_epi64(a, c);
        out[1].v[h] = _mm256_unpackhi_epi64(a, c);
        out[2].v[h] = _mm256_unpacklo_epi64(b, d);
        out[3].v[h] = _mm256_unpackhi_epi64(b, d);
    }
}

inline Floats to_floats(Words a) { return both<Floats>([&](int h) { return _mm256_cvtepi32_ps(a.v[h]); }); }

// Sums of 32 bytes of codes times activations, in eight words; and with 4 bits the other half of the activations.
#ifdef __AVXVNNI__

struct Pairs { __m256i v; };
inline Pairs no_pairs() { return {_mm256_setzero_si256()}; }
template <int BITS>
void add_pairs(Pairs& sums, __m256i codes, __m256i x) { sums.v = _mm256_dpbusd_avx_epi32(sums.v, codes, x); }
template <int BITS>
__m256i words(Pairs sums) { return sums.v; }

#else

// Pairs of products are added in 16 bits: 8 pairs of at most 2 * 15 * 127 do not overflow, so codes of 8 bits are
// multiplied as two halves.
struct Pairs { __m256i low, high; };
inline Pairs no_pairs() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
template <int BITS>
void add_pairs(Pairs& sums, __m256i codes, __m256i x) {
    const __m256i fifteen = _mm256_set1_epi8(15);
    if (BITS == 8) {
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), fifteen);
        sums.high = _mm256_add_epi16(sums.high, _mm256_maddubs_epi16(high, x));
        codes = _mm256_and_si256(codes, fifteen);
    }
    sums.low = _mm256_add_epi16(sums.low, _mm256_maddubs_epi16(codes, x));
}
template <int BITS>
__m256i words(Pairs sums) {
    __m256i low = _mm256_madd_epi16(sums.low, _mm256_set1_epi16(1));
    return BITS == 4 ? low : _mm256_add_epi32(low, _mm256_madd_epi16(sums.high, _mm256_set1_epi16(16)));
}

#endif

template <int BITS, int ROWS>
void dots(const uint8_t* codes, const int8_t* x, const int8_t* more, Words (&sums)[ROWS]) {
    Pairs pairs[ROWS][2];
    for (int m = 0; m < ROWS; m++) pairs[m][0] = pairs[m][1] = no_pairs();
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++) {
        const __m256i* w = (const __m256i*)(codes + quad * 64);
        const int32_t* four = (const int32_t*)((quad < 4 ? x : more) + quad % 4 * 4 * ROWS);
        for (int m = 0; m < ROWS; m++)
            for (int h = 0; h < 2; h++)
                add_pairs<BITS>(pairs[m][h], _mm256_load_si256(w + h), _mm256_set1_epi32(four[m]));
    }
    for (int m = 0; m < ROWS; m++) sums[m] = both<Words>([&](int h) { return words<BITS>(pairs[m][h]); });
}

// The sums of the four words of each half of a, b, c and d, in the halves of the result.
inline __m256i sums_of_halves(__m256i a, __m256i b, __m256i c, __m256i d) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
}

template <int BITS>
void row_dots(const uint8_t* codes, int64_t stride, const int8_t* x, const int8_t* more, int32_t* sums) {
    const __m256i fifteen = _mm256_set1_epi8(15);
    auto part = [&](int r, int i) {  // 32 bytes of a row
        auto at = [&](const void* from) { return _mm256_loadu_si256((const __m256i*)from + i); };
        __m256i w = at(codes + r * stride);
        Pairs pairs = no_pairs();
        add_pairs<BITS>(pairs, BITS == 4 ? _mm256_and_si256(w, fifteen) : w, at(x));
        if (BITS == 4) add_pairs<BITS>(pairs, _mm256_and_si256(_mm256_srli_epi16(w, 4), fifteen), at(more));
        return words<BITS>(pairs);
    };
    for (int two = 0; two < 2; two++, sums += 2 * LANES) {  // blocks, each a half
        auto row = [&](int r) {
            if (BITS == 4) return part(r, two);
            __m256i a = part(r, 2 * two), b = part(r, 2 * two + 1);
            return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
        };
        __m256i found = sums_of_halves(row(0), row(1), row(2), row(3));
        _mm_storeu_si128((__m128i*)sums, _mm256_castsi256_si128(found));
        _mm_storeu_si128((__m128i*)(sums + LANES), _mm256_extracti128_si256(found, 1));
    }
}
