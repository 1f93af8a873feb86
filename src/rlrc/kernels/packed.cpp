// Products with packed weights on x86 processors that have AVX-512 VNNI; built and called by `kernels/__init__.py`.
//
// A weight is `codes` (N, W) uint8 with W = K / 2 (4 bits, even column in the low nibble) or K (8 bits), `scales`
// bfloat16 (N, G) and `zeros` (N, G) packed like the codes: w = (code - zero) * scale, a group being a multiple of 32
// columns. The files of a checkpoint have this layout, and it is what is read here: nothing is laid out anew.
//
// Activations become int8, row by row, with the row's largest magnitude as 127. Then
//   vector  few rows: codes times activations in integers, group by group; weights are read once, at memory speed
//   matrix  many rows: 16 output rows at a time are brought to 8 bits with one scale each, and serve all activations
// Both multiply 64 pairs of 8-bit integers in one instruction.

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
constexpr int64_t LANES = 16;  // output rows of a panel, one in each lane
constexpr int64_t TILE = 14;   // activation rows multiplied at once: as many accumulators as there are registers for

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

// ---- few rows -------------------------------------------------------------------------------------------------------

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

// Scale of every block of a weight's row, and scale times zero point; `blocks` rounded up to 16 of each.
void row_scales(const Weight& w, int64_t i, float* scale, float* offset) {
    int64_t blocks = w.blocks(), per_group = w.group / BLOCK;
    if (per_group == 1 && w.bits == 4) {
        const uint16_t* scales = w.scales + i * blocks;
        const uint8_t* zeros = w.zeros + i * ((blocks + 1) / 2);
        for (int64_t b = 0; b < blocks; b += 16) {
            __m512 s = load(scales + b, first_lanes(blocks - b));
            __m128i pairs = _mm_maskz_loadu_epi8(first_lanes((blocks - b + 1) / 2) & 0xff, zeros + b / 2);
            __m128i low = _mm_and_si128(pairs, _mm_set1_epi8(15));
            __m128i high = _mm_and_si128(_mm_srli_epi16(pairs, 4), _mm_set1_epi8(15));
            __m512 z = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high)));
            _mm512_storeu_ps(scale + b, s);
            _mm512_storeu_ps(offset + b, _mm512_mul_ps(s, z));
        }
        return;
    }
    for (int64_t b = 0; b < blocks; b++) {
        scale[b] = w.scale(i, b / per_group);
        offset[b] = scale[b] * w.zero(i, b / per_group);
    }
}

// 16 sums of 4 neighbouring bytes each belong to 64 / bytes-a-block blocks: their scales, spread over the lanes.
__m512 spread_scales(const float* scale, int64_t bits) {
    if (bits == 4) {
        const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_loadu_ps(scale)));
    }
    const __m512i lanes = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_loadu_ps(scale)));
}

template <int BITS, int ROWS>
void dot_rows(const Weight& w, int64_t i, const Vector* x, const float* scale, const float* offset, float* out) {
    const uint8_t* codes = w.row(i);
    const __m512i fifteen = _mm512_set1_epi8(15);
    __m512 sums[ROWS];
    for (int m = 0; m < ROWS; m++) sums[m] = _mm512_setzero_ps();
    for (int64_t j = 0, width = w.width(); j < width; j += 64) {
        __m512i c = _mm512_maskz_loadu_epi8(first_bytes(width - j), codes + j);
        __m512 s = spread_scales(scale + (BITS == 4 ? j / 16 : j / 32), BITS);
        __m512i low = BITS == 4 ? _mm512_and_si512(c, fifteen) : c;
        __m512i high = _mm512_and_si512(_mm512_srli_epi16(c, 4), fifteen);
        for (int m = 0; m < ROWS; m++) {
            __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(&x[m].first[j]));
            if (BITS == 4) dots = _mm512_dpbusd_epi32(dots, high, _mm512_loadu_si512(&x[m].second[j]));
            sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), s, sums[m]);
        }
    }
    for (int m = 0; m < ROWS; m++) {
        for (int64_t b = 0; b < w.blocks(); b += 16) {
            __m512 o = _mm512_maskz_loadu_ps(first_lanes(w.blocks() - b), offset + b);
            sums[m] = _mm512_fnmadd_ps(o, _mm512_loadu_ps(&x[m].sums[b]), sums[m]);
        }
        out[m] = _mm512_reduce_add_ps(sums[m]) * x[m].scale;
    }
}

template <int BITS>
void dot_rows(const Weight& w, int64_t i, const std::vector<Vector>& x, const float* scale, const float* offset, float* out) {
    int64_t rows = int64_t(x.size()), m = 0;
    for (; m + 4 <= rows; m += 4) dot_rows<BITS, 4>(w, i, &x[m], scale, offset, out + m);
    for (; m < rows; m++) dot_rows<BITS, 1>(w, i, &x[m], scale, offset, out + m);
}

template <typename T>
void vector_product(const Weight& w, const T* x, int64_t rows, const float* bias, T* y, int threads) {
    std::vector<Vector> quantized;
    for (int64_t m = 0; m < rows; m++) quantized.push_back(quantize_vector(x + m * w.k, w.k, w.bits));
#pragma omp parallel num_threads(threads) if (w.n * w.k > 1 << 17)
    {
        int64_t padded = (w.blocks() + 15) / 16 * 16;
        std::vector<float> scale(padded, 0.0f), offset(padded, 0.0f), out(rows);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < w.n; i++) {
            row_scales(w, i, scale.data(), offset.data());
            if (w.bits == 4) dot_rows<4>(w, i, quantized, scale.data(), offset.data(), out.data());
            else dot_rows<8>(w, i, quantized, scale.data(), offset.data(), out.data());
            for (int64_t m = 0; m < rows; m++) {
                __m512 value = _mm512_set1_ps(out[m] + (bias ? bias[i] : 0.0f));
                store(y + m * w.n + i, 1, value);
            }
        }
    }
}

// ---- many rows ------------------------------------------------------------------------------------------------------

// Activations in int8, TILE rows at a time, four columns of each row together: [tile][column / 4][row][4].
struct Matrix {
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    int64_t rows, quads;

    const int8_t* tile(int64_t t) const { return codes.data() + t * quads * TILE * 4; }
};

template <typename T>
Matrix quantize_matrix(const T* x, int64_t rows, int64_t k, int threads) {
    int64_t tiles = (rows + TILE - 1) / TILE, padded = (k + BLOCK - 1) / BLOCK * BLOCK;
    Matrix q{std::vector<int8_t>(tiles * TILE * padded, 0), std::vector<float>(tiles * TILE, 1.0f),
             std::vector<int32_t>(tiles * TILE, 0), rows, padded / 4};
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * k > 1 << 16)
    for (int64_t m = 0; m < rows; m++) {
        const T* from = x + m * k;
        float scale = q.scales[m] = activation_scale(from, k);
        int8_t* to = q.codes.data() + (m / TILE) * q.quads * TILE * 4 + (m % TILE) * 4;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t j = 0; j < k; j += 16) {
            alignas(16) int8_t codes[16];
            __m128i c = quantize16(from + j, k - j, scale);
            sum = _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(c));
            _mm_store_si128((__m128i*)codes, c);
            for (int64_t quad = 0; quad < 4; quad++) std::memcpy(to + (j / 4 + quad) * TILE * 4, codes + 4 * quad, 4);
        }
        q.sums[m] = _mm512_reduce_add_epi32(sum);
    }
    return q;
}

// The 32 weights of a block of one row as bytes, 128 + weight / `unit`, in the order of their columns.
__m256i block_bytes(const Weight& w, int64_t i, int64_t b, float unit) {
    int64_t g = b * BLOCK / w.group, left = w.k - b * BLOCK;
    __m512 scale = _mm512_set1_ps(w.scale(i, g) / unit), zero = _mm512_set1_ps(w.zero(i, g));
    const __m512i middle = _mm512_set1_epi32(128);
    auto byte_of = [&](__m512i code) {
        __m512 weight = _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), zero), scale);
        return _mm512_cvtusepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(weight), middle));
    };
    if (w.bits == 8) {
        const uint8_t* codes = w.row(i) + b * BLOCK;
        __m128i low = byte_of(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(left), codes)));
        __m128i high = byte_of(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(left - 16), codes + 16)));
        return _mm256_set_m128i(high, low);
    }
    __m128i table = byte_of(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    __m128i codes = _mm_maskz_loadu_epi8(first_lanes((left + 1) / 2), w.row(i) + b * (BLOCK / 2));
    __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(codes, _mm_set1_epi8(15)));
    __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(codes, 4), _mm_set1_epi8(15)));
    return _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
}

// A panel: LANES output rows from `i` on in 8 bits, [column / 4][row][4], and what one unit of each row is worth.
void unpack_panel(const Weight& w, int64_t i, uint8_t* panel, float* units) {
    float top = w.bits == 4 ? 15.0f : 255.0f;
    int64_t rows = std::min(LANES, w.n - i);
    for (int64_t lane = 0; lane < rows; lane++) {
        float largest = 0.0f;
        for (int64_t g = 0; g < w.groups(); g++) {
            float zero = w.zero(i + lane, g);
            largest = std::max(largest, w.scale(i + lane, g) * std::max(zero, top - zero));
        }
        units[lane] = largest > 0 ? largest / 127.0f : 1.0f;
        for (int64_t b = 0; b < w.blocks(); b++) {
            alignas(32) uint8_t bytes[BLOCK];
            _mm256_store_si256((__m256i*)bytes, block_bytes(w, i + lane, b, units[lane]));
            uint8_t* to = panel + (b * (BLOCK / 4) * LANES + lane) * 4;
            for (int64_t quad = 0; quad < BLOCK / 4; quad++) std::memcpy(to + quad * LANES * 4, bytes + 4 * quad, 4);
        }
    }
}

template <typename T>
void multiply_tile(const Matrix& x, int64_t t, const uint8_t* panel, const float* units, const float* bias, int64_t i,
                   int64_t n, T* y) {
    const int8_t* codes = x.tile(t);
    __m512i sums[TILE];
    for (int r = 0; r < TILE; r++) sums[r] = _mm512_setzero_si512();
    for (int64_t quad = 0; quad < x.quads; quad++) {
        __m512i w = _mm512_load_si512(panel + quad * LANES * 4);
        const int32_t* four = (const int32_t*)(codes + quad * TILE * 4);
#pragma GCC unroll 14
        for (int r = 0; r < TILE; r++) sums[r] = _mm512_dpbusd_epi32(sums[r], w, _mm512_set1_epi32(four[r]));
    }
    __mmask16 mask = first_lanes(n - i);
    __m512 unit = _mm512_maskz_loadu_ps(mask, units);
    __m512 shift = bias ? _mm512_maskz_loadu_ps(mask, bias + i) : _mm512_setzero_ps();
    for (int64_t r = 0, m = t * TILE; r < TILE && m < x.rows; r++, m++) {
        __m512i sum = _mm512_sub_epi32(sums[r], _mm512_set1_epi32(128 * x.sums[m]));
        __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(unit, _mm512_set1_ps(x.scales[m])));
        store(y + m * n + i, mask, _mm512_add_ps(value, shift));
    }
}

template <typename T>
void matrix_product(const Weight& w, const T* x, int64_t rows, const float* bias, T* y, int threads) {
    Matrix quantized = quantize_matrix(x, rows, w.k, threads);
    int64_t tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel num_threads(threads) if (w.n * w.k * rows > 1 << 18)
    {
        std::unique_ptr<uint8_t, decltype(&std::free)> panel(
            (uint8_t*)std::aligned_alloc(64, quantized.quads * LANES * 4), &std::free);
        std::memset(panel.get(), 0, quantized.quads * LANES * 4);
        float units[LANES] = {};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < w.n; i += LANES) {
            unpack_panel(w, i, panel.get(), units);
            for (int64_t t = 0; t < tiles; t++)
                multiply_tile(quantized, t, panel.get(), units, bias, i, w.n, y);
        }
    }
}

// ---- the whole weight -----------------------------------------------------------------------------------------------

void unpack_weight(const Weight& w, uint16_t* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (w.n * w.k > 1 << 16)
    for (int64_t i = 0; i < w.n; i++) {
        for (int64_t b = 0; b < w.blocks(); b++) {
            int64_t g = b * BLOCK / w.group, left = w.k - b * BLOCK;
            __m512 scale = _mm512_set1_ps(w.scale(i, g)), zero = _mm512_set1_ps(w.zero(i, g));
            __m128i low, high;
            if (w.bits == 8) {
                low = _mm_maskz_loadu_epi8(first_lanes(left), w.row(i) + b * BLOCK);
                high = _mm_maskz_loadu_epi8(first_lanes(left - 16), w.row(i) + b * BLOCK + 16);
            } else {
                __m128i c = _mm_maskz_loadu_epi8(first_lanes((left + 1) / 2), w.row(i) + b * (BLOCK / 2));
                __m128i even = _mm_and_si128(c, _mm_set1_epi8(15));
                __m128i odd = _mm_and_si128(_mm_srli_epi16(c, 4), _mm_set1_epi8(15));
                low = _mm_unpacklo_epi8(even, odd), high = _mm_unpackhi_epi8(even, odd);
            }
            auto weights = [&](__m128i code) {
                return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)), zero), scale);
            };
            store(out + i * w.k + b * BLOCK, first_lanes(left), weights(low));
            store(out + i * w.k + b * BLOCK + 16, first_lanes(left - 16), weights(high));
        }
    }
}

template <typename T>
void product(const Weight& w, bool many, const void* x, int64_t rows, const float* bias, void* y, int threads) {
    if (many) matrix_product(w, (const T*)x, rows, bias, (T*)y, threads);
    else vector_product(w, (const T*)x, rows, bias, (T*)y, threads);
}

}  // namespace

extern "C" {

// y (rows, N) = x (rows, K) times the weight, plus bias (N) float or null; x and y are bfloat16 or float32.
void packed_product(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, int64_t bits, int64_t group,
                    int64_t n, int64_t k, int many, int bf16, const void* x, int64_t rows, const float* bias, void* y,
                    int threads) {
    Weight w{codes, scales, zeros, bits, group, n, k};
    if (bf16) product<uint16_t>(w, many, x, rows, bias, y, threads);
    else product<float>(w, many, x, rows, bias, y, threads);
}

// out (N, K) bfloat16: the weight itself.
void packed_unpack(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, int64_t bits, int64_t group,
                   int64_t n, int64_t k, uint16_t* out, int threads) {
    unpack_weight(Weight{codes, scales, zeros, bits, group, n, k}, out, threads);
}
}
