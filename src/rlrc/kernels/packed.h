// What all kernels share: packed weights, activations as 8-bit integers, and the product of one with the other.
//
// A weight is `codes` (N, W) uint8 with W = K / 2 (4 bits, even column in the low nibble) or K (8 bits), `scales`
// bfloat16 (N, G) and `zeros` (N, G) packed like the codes: w = (code - zero) * scale, a group being a multiple of 32
// columns. The files of a checkpoint have this layout, and it is what is read here: nothing is laid out anew.
//
// Activations become int8, row by row, with the row's largest magnitude as 127; then codes times activations in
// integers, group by group, 64 pairs in one instruction.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace {

constexpr int64_t BLOCK = 32;  // columns that certainly share a scale
constexpr int64_t AHEAD = 4096;  // bytes: the processor itself looks ahead no further than to the end of a page

struct Weight {
    const uint8_t* codes;
    const uint16_t* scales;
    const uint8_t* zeros;
    int64_t bits, group, n, k;

    int64_t groups() const { return (k + group - 1) / group; }
    int64_t blocks() const { return (k + BLOCK - 1) / BLOCK; }
    int64_t width() const { return bits == 4 ? (k + 1) / 2 : k; }
    const uint8_t* row(int64_t i) const { return codes + i * width(); }
    float scale(int64_t i, int64_t g) const { return widen(scales[i * groups() + g]); }
    float zero(int64_t i, int64_t g) const {
        if (bits == 8) return zeros[i * groups() + g];
        uint8_t pair = zeros[i * ((groups() + 1) / 2) + g / 2];
        return g % 2 ? pair >> 4 : pair & 15;
    }
    static float widen(uint16_t bf16) {
        uint32_t bits = uint32_t(bf16) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
};

__mmask16 first_lanes(int64_t count) { return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << std::max<int64_t>(count, 0)) - 1); }
__mmask64 first_bytes(int64_t count) { return count >= 64 ? ~__mmask64(0) : (__mmask64(1) << std::max<int64_t>(count, 0)) - 1; }

// Activations and results are bfloat16 (uint16_t) or float.
__m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
__m512 load(const uint16_t* from, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}
void store(float* to, __mmask16 mask, __m512 value) { _mm512_mask_storeu_ps(to, mask, value); }
void store(uint16_t* to, __mmask16 mask, __m512 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(rounded));
}

// The scale that brings a row of activations to int8; NaN where the row holds NaN.
template <typename T>
float activation_scale(const T* x, int64_t k) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 nan = 0;
    for (int64_t j = 0; j < k; j += 16) {
        __m512 v = load(x + j, first_lanes(k - j));
        nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
    }
    float top = _mm512_reduce_max_ps(largest);
    return nan ? std::numeric_limits<float>::quiet_NaN() : (top > 0 ? top / 127.0f : 1.0f);
}

template <typename T>
__m128i quantize16(const T* x, int64_t left, float scale) {
    __m512 v = _mm512_mul_ps(load(x, first_lanes(left)), _mm512_set1_ps(1.0f / scale));
    return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v));
}

// One row of activations: int8 codes as the weights' bytes meet them, and their sum over each block.
struct Vector {
    std::vector<int8_t> first, second;  // 4 bits: even and odd columns; 8 bits: all columns, and nothing
    std::vector<float> sums;
    float scale;
};

template <typename T>
Vector quantize_vector(const T* x, int64_t k, int64_t bits) {
    int64_t blocks = (k + BLOCK - 1) / BLOCK, padded = (blocks * BLOCK + 127) / 128 * 128;
    std::vector<int8_t> codes(padded, 0);
    Vector v{{}, {}, std::vector<float>((blocks + 15) / 16 * 16, 0.0f), activation_scale(x, k)};
    for (int64_t j = 0; j < k; j += 16) _mm_storeu_si128((__m128i*)&codes[j], quantize16(x + j, k - j, v.scale));
    for (int64_t b = 0; b < blocks; b++) {
        int sum = 0;
        for (int64_t j = b * BLOCK; j < (b + 1) * BLOCK; j++) sum += codes[j];
        v.sums[b] = float(sum);
    }
    if (bits == 8) {
        v.first = std::move(codes);
        return v;
    }
    v.first.resize(padded / 2);
    v.second.resize(padded / 2);
    for (int64_t j = 0; j < padded / 2; j++) v.first[j] = codes[2 * j], v.second[j] = codes[2 * j + 1];
    return v;
}

// Scales of 16 blocks of a weight's row, from block b on, and scales times zero points; 0 past the row's end.
struct BlockScales {
    __m512 scale, offset;
};

inline BlockScales block_scales(const Weight& w, int64_t i, int64_t b, int64_t blocks) {
    __mmask16 mask = first_lanes(blocks - b);
    if (w.group == BLOCK) {
        __m128i zeros;
        if (w.bits == 8) {
            zeros = _mm_maskz_loadu_epi8(mask, w.zeros + i * blocks + b);
        } else {
            const uint8_t* pairs_at = w.zeros + i * ((blocks + 1) / 2) + b / 2;
            __m128i pairs = _mm_maskz_loadu_epi8(first_lanes((blocks - b + 1) / 2) & 0xff, pairs_at);
            __m128i low = _mm_and_si128(pairs, _mm_set1_epi8(15));
            __m128i high = _mm_and_si128(_mm_srli_epi16(pairs, 4), _mm_set1_epi8(15));
            zeros = _mm_unpacklo_epi8(low, high);
        }
        __m512 scale = load(w.scales + i * blocks + b, mask);
        return {scale, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros)))};
    }
    alignas(64) float scale[16] = {}, offset[16] = {};
    for (int64_t lane = 0; lane < 16 && b + lane < blocks; lane++) {
        int64_t g = (b + lane) * BLOCK / w.group;
        scale[lane] = w.scale(i, g);
        offset[lane] = scale[lane] * w.zero(i, g);
    }
    return {_mm512_load_ps(scale), _mm512_load_ps(offset)};
}

// 64 bytes of codes give 16 sums of 4 neighbouring bytes, which lie in 64 / (bytes a block) blocks: for the `part`-th 64
// bytes after those scales, the block of each lane.
template <int BITS>
__m512i lanes_of_blocks(int part) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    constexpr int SHIFT = BITS == 4 ? 2 : 3, BLOCKS = BITS == 4 ? 4 : 2;
    return _mm512_add_epi32(_mm512_srli_epi32(lane, SHIFT), _mm512_set1_epi32(part * BLOCKS));
}

// out[m] = row i of the weight times x[m].
template <int BITS, int ROWS>
void dot_rows(const Weight& w, int64_t i, const Vector* x, float* out) {
    constexpr int PARTS = BITS == 4 ? 4 : 8;  // of 64 bytes, in 16 blocks
    const uint8_t* codes = w.row(i);
    const int64_t width = w.width(), blocks = w.blocks();
    const __m512i fifteen = _mm512_set1_epi8(15);
    __m512 sums[ROWS];
    for (int m = 0; m < ROWS; m++) sums[m] = _mm512_setzero_ps();
    for (int64_t b = 0; b < blocks; b += 16) {
        BlockScales s = block_scales(w, i, b, blocks);
        for (int m = 0; m < ROWS; m++) sums[m] = _mm512_fnmadd_ps(s.offset, _mm512_loadu_ps(&x[m].sums[b]), sums[m]);
#pragma GCC unroll 8
        for (int part = 0; part < PARTS; part++) {
            int64_t j = (b / 16 * PARTS + part) * 64;
            if (j >= width) break;
            _mm_prefetch((const char*)codes + j + AHEAD, _MM_HINT_T0);
            __m512i c = _mm512_maskz_loadu_epi8(first_bytes(width - j), codes + j);
            __m512 scale = _mm512_permutexvar_ps(lanes_of_blocks<BITS>(part), s.scale);
            __m512i low = BITS == 4 ? _mm512_and_si512(c, fifteen) : c;
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(c, 4), fifteen);
            for (int m = 0; m < ROWS; m++) {
                __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(&x[m].first[j]));
                if (BITS == 4) dots = _mm512_dpbusd_epi32(dots, high, _mm512_loadu_si512(&x[m].second[j]));
                sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, sums[m]);
            }
        }
    }
    for (int m = 0; m < ROWS; m++) out[m] = _mm512_reduce_add_ps(sums[m]) * x[m].scale;
}

}  // namespace
