// What a processor has to offer for the products of this room: sixteen lanes, each of which belongs to one row of the
// weight. Everything else is written once, in these words, and gives the same bits on every processor.
//
//   Words                     32 bits a lane: bytes, or an integer
//   Floats                    a float a lane
//   transpose(at, stride)     16 bytes of each of 16 rows -> out[i]: the i-th four bytes of row r in lane r
//   low_nibbles, high_nibbles of every byte
//   field<BITS>(words, i)     the i-th BITS bits of a lane, as a float
//   low_bf16, high_bf16       the first and the second bfloat16 of a lane, as floats
//   fma, fnma                 a * b + c and c - a * b, rounded once
//   dots<BITS, ROWS>          codes [quad of columns][lane][4] of 32 columns, at a multiple of 64 bytes, times ROWS rows of
//                             activations [quad][row][4], those of the last four quads in a place of their own:
//                             the sum of each lane, exact
//   row_dots<BITS>            4 blocks of 32 columns of four rows of the weight, `stride` bytes apart, times one row of
//                             activations: sums[block * LANES + row], exact
//   TILE                      rows of activations for which there are registers

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace {

constexpr int64_t LANES = 16;  // rows of the weight that are multiplied at once: a panel

#if defined(__AVX512VNNI__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "lanes_neon.h"
#else
#error "there are no lanes for this processor"
#endif

}  // namespace
