// GELU by its approximation with tanh; called by `gelu.py`. With u = sqrt(2 / pi) (x + 0.044715 x^3), 0.5 x (1 + tanh u) is
// x / (1 + e^(-2 u)), in float32 and rounded to bfloat16 once.

#include <algorithm>
#include <cstdint>

#include "exponential.h"

namespace {

constexpr int64_t LANES = 16, TOGETHER = 1 << 14;

inline void gelu_tanh_of(const uint16_t* x, uint16_t* y, __mmask16 there) {
    __m256i narrow = _mm256_maskz_loadu_epi16(there, x);
    __m512 a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    // -2 u = a (-1.5957691 - 0.071354816 a^2); what is beyond 88 has an infinite power
    __m512 square = _mm512_mul_ps(a, a);
    __m512 power = _mm512_mul_ps(a, _mm512_fmadd_ps(square, _mm512_set1_ps(-0.071354816f), _mm512_set1_ps(-1.5957691f)));
    power = _mm512_min_ps(_mm512_set1_ps(200.0f), power);
    __m512 gelu = _mm512_div_ps(a, _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(power)));
    _mm256_mask_storeu_epi16(y, there, (__m256i)_mm512_cvtneps_pbh(gelu));
}

}  // namespace

extern "C" {

// y = GELU of x, both of `count` numbers in bfloat16.
void gelu_tanh(const uint16_t* x, uint16_t* y, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) if (count > TOGETHER)
    for (int64_t begin = 0; begin < count; begin += TOGETHER) {
        const int64_t end = std::min(begin + TOGETHER, count);
        for (int64_t i = begin; i < end; i += LANES)
            gelu_tanh_of(x + i, y + i, end - i >= LANES ? 0xffff : (1 << (end - i)) - 1);
    }
}
}
