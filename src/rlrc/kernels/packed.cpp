// Products with packed weights on x86 processors that have AVX-512 VNNI; built by `build.py`, called by `__init__.py`.
//
//   vector  few rows: weights are read once, at memory speed
//   matrix  many rows: 16 output rows at a time are brought to 8 bits with one scale each, and serve all activations

#include "packed.h"

namespace {

constexpr int64_t LANES = 16;  // output rows of a panel, one in each lane
constexpr int64_t TILE = 14;   // activation rows multiplied at once: as many accumulators as there are registers for

// ---- few rows -------------------------------------------------------------------------------------------------------

template <int BITS>
void dot_all(const Weight& w, int64_t i, const std::vector<Vector>& x, float* out) {
    int64_t rows = int64_t(x.size()), m = 0;
    for (; m + 4 <= rows; m += 4) dot_rows<BITS, 4>(w, i, &x[m], out + m);
    for (; m < rows; m++) dot_rows<BITS, 1>(w, i, &x[m], out + m);
}

template <typename T>
void vector_product(const Weight& w, const T* x, int64_t rows, const float* bias, T* y, int threads) {
    std::vector<Vector> quantized;
    for (int64_t m = 0; m < rows; m++) quantized.push_back(quantize_vector(x + m * w.k, w.k, w.bits));
#pragma omp parallel num_threads(threads) if (w.n * w.k > 1 << 17)
    {
        std::vector<float> out(rows);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < w.n; i++) {
            if (w.bits == 4) dot_all<4>(w, i, quantized, out.data());
            else dot_all<8>(w, i, quantized, out.data());
            for (int64_t m = 0; m < rows; m++)
                store(y + m * w.n + i, 1, _mm512_set1_ps(out[m] + (bias ? bias[i] : 0.0f)));
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

template <typename T>
void product(const Weight& w, bool matrix, const void* x, int64_t rows, const float* bias, void* y, int threads) {
    if (matrix) matrix_product(w, (const T*)x, rows, bias, (T*)y, threads);
    else vector_product(w, (const T*)x, rows, bias, (T*)y, threads);
}

}  // namespace

extern "C" {

// y (rows, N) = x (rows, K) times the weight, plus bias (N) float or null; x and y are bfloat16 or float32.
void packed_product(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, int64_t bits, int64_t group,
                    int64_t n, int64_t k, int matrix, int bf16, const void* x, int64_t rows, const float* bias, void* y,
                    int threads) {
    Weight w{codes, scales, zeros, bits, group, n, k};
    if (bf16) product<uint16_t>(w, matrix, x, rows, bias, y, threads);
    else product<float>(w, matrix, x, rows, bias, y, threads);
}
}
