// e^x of sixteen floats.

#pragma once

#include <immintrin.h>

namespace {

// e^x for x <= 200, to 2e-7 of itself; infinity from 89 on, and NaN for NaN. 2^f is a polynomial in -0.5 <= f <= 0.5.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // e^-200 is 0
    const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), whole = _mm512_roundscale_ps(power, 0);
    const __m512 f = _mm512_sub_ps(power, whole);
    __m512 y = _mm512_set1_ps(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
    return _mm512_scalef_ps(y, whole);
}

}  // namespace
