// Attention of every position to every other, in bfloat16, for processors with AVX-512 BF16; called by `attention.py`.
//
// A head's keys and values are laid out once, so that an instruction multiplies pairs of neighbouring numbers of sixteen
// of them. Then six queries at a time: their scores with all keys in float32, e to the power of each over the largest,
// rounded to bfloat16, and the values mixed by those, over what they add up to before they are rounded. Nothing depends
// on the number of threads, or on what else is in the batch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "exponential.h"

namespace {

constexpr int64_t LANES = 16;               // floats in a register
constexpr int64_t QUERIES = 6, ACROSS = 4;  // rows of queries, times registers of sums for each: 24 of 32 registers

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A pair of neighbouring numbers in bfloat16, in all lanes.
inline __m512i pair_at(const uint16_t* from) {
    int32_t two;
    std::memcpy(&two, from, 4);
    return _mm512_set1_epi32(two);
}

// The first sums += products of two pairs in each lane.
inline __m512 add_pairs(__m512 sums, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b); }

// Keys and values of a head. What is added to fill up blocks is zero.
class Head {
public:
    int64_t keys, dims;

    int64_t wide() const { return up(keys, ACROSS * LANES); }  // with the keys that are added
    int64_t deep() const { return up(dims, LANES); }           // with the numbers that are added to values
    const uint16_t* key_pairs(int64_t key) const { return &keys_[key * dims]; }
    const uint16_t* value_pairs(int64_t key, int64_t dim) const { return &values_[key * deep() + 2 * dim]; }

    void read(const uint16_t* k, const uint16_t* v, int64_t apart_k, int64_t apart_v, int64_t length, int64_t numbers) {
        keys = length;
        dims = numbers;
        keys_.assign(wide() * dims, 0);      // [sixteen keys][pair of dims][key][2]
        values_.assign(wide() * deep(), 0);  // [pair of keys][dim][2]
        for (int64_t key = 0; key < keys; key++, k += apart_k, v += apart_v) {
            uint16_t* to = &keys_[key / LANES * LANES * dims + 2 * (key % LANES)];
            for (int64_t d = 0; d < dims; d += 2, to += 2 * LANES) std::memcpy(to, k + d, 4);
            to = &values_[key / 2 * 2 * deep() + key % 2];
            for (int64_t d = 0; d < dims; d++) to[2 * d] = v[d];
        }
    }

private:
    std::vector<uint16_t> keys_, values_;
};

// What six queries take from each key, (QUERIES, wide): scores, and after `soften` weights, with their sums.
struct Shares {
    std::vector<float> scores;
    std::vector<uint16_t> weights;
    float sums[QUERIES];
};

void score(const Head& head, const uint16_t* const (&queries)[QUERIES], Shares& to) {
    for (int64_t key = 0; key < head.wide(); key += ACROSS * LANES) {
        __m512 sums[QUERIES][ACROSS];
        for (auto& row : sums)
            for (auto& sum : row) sum = _mm512_setzero_ps();
        for (int64_t d = 0; d < head.dims; d += 2) {
            __m512i keys[ACROSS];
#pragma GCC unroll 4
            for (int i = 0; i < ACROSS; i++) keys[i] = _mm512_loadu_si512(head.key_pairs(key + i * LANES) + d * LANES);
#pragma GCC unroll 6
            for (int m = 0; m < QUERIES; m++) {
                const __m512i query = pair_at(queries[m] + d);
#pragma GCC unroll 4
                for (int i = 0; i < ACROSS; i++) sums[m][i] = add_pairs(sums[m][i], keys[i], query);
            }
        }
        for (int m = 0; m < QUERIES; m++)
            for (int i = 0; i < ACROSS; i++)
                _mm512_storeu_ps(&to.scores[m * head.wide() + key + i * LANES], sums[m][i]);
    }
}

void soften(const Head& head, float scale, Shares& shares) {
    const int64_t wide = head.wide();
    for (int m = 0; m < QUERIES; m++) {
        float* scores = &shares.scores[m * wide];
        uint16_t* weights = &shares.weights[m * wide];
        std::fill(scores + head.keys, scores + wide, -std::numeric_limits<float>::infinity());
        __m512 top = _mm512_loadu_ps(scores), sum = _mm512_setzero_ps();
        for (int64_t key = LANES; key < wide; key += LANES) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + key));
        const __m512 by = _mm512_set1_ps(scale), largest = _mm512_set1_ps(_mm512_reduce_max_ps(top) * scale);
        for (int64_t key = 0; key < wide; key += 2 * LANES) {
            __m512 a = exponential(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), by, largest));
            __m512 b = exponential(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key + LANES), by, largest));
            sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
            _mm512_storeu_si512(weights + key, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
        shares.sums[m] = _mm512_reduce_add_ps(sum);
    }
}

// out (QUERIES, deep), COUNT registers of it from the number `dim` on.
template <int COUNT>
void mix(const Head& head, const Shares& shares, int64_t dim, float* out) {
    __m512 sums[QUERIES][COUNT];
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm512_setzero_ps();
    for (int64_t key = 0; key < head.keys; key += 2) {
        __m512i values[COUNT];
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; i++) values[i] = _mm512_loadu_si512(head.value_pairs(key, dim + i * LANES));
#pragma GCC unroll 6
        for (int m = 0; m < QUERIES; m++) {
            const __m512i weight = pair_at(&shares.weights[m * head.wide() + key]);
#pragma GCC unroll 4
            for (int i = 0; i < COUNT; i++) sums[m][i] = add_pairs(sums[m][i], values[i], weight);
        }
    }
    for (int m = 0; m < QUERIES; m++)
        for (int i = 0; i < COUNT; i++)
            _mm512_storeu_ps(out + m * head.deep() + dim + i * LANES,
                             _mm512_div_ps(sums[m][i], _mm512_set1_ps(shares.sums[m])));
}

void mix_all(const Head& head, const Shares& shares, float* out) {
    int64_t dim = 0;
    for (; dim + ACROSS * LANES <= head.deep(); dim += ACROSS * LANES) mix<ACROSS>(head, shares, dim, out);
    for (; dim < head.deep(); dim += LANES) mix<1>(head, shares, dim, out);
}

void write_row(const float* from, int64_t dims, uint16_t* to) {
    for (int64_t d = 0; d < dims; d += LANES) {
        const __mmask16 there = dims - d >= LANES ? 0xffff : (1 << (dims - d)) - 1;
        _mm256_mask_storeu_epi16(to + d, there, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + d)));
    }
}

}  // namespace

extern "C" {

// out (batch, length, heads, dims) of q, k and v in bfloat16; `strides` has three for each: from one sequence of the batch
// to the next, from head to head, and from position to position. A head has an even number of dims.
void attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, int64_t batch, int64_t heads,
               int64_t length, int64_t dims, const int64_t* strides, float scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Head head;
        Shares shares;
        std::vector<float> mixed;
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < batch * heads; item++) {
            const int64_t b = item / heads, h = item % heads;
            auto start = [&](const uint16_t* x, int i) { return x + b * strides[3 * i] + h * strides[3 * i + 1]; };
            const uint16_t* first = start(q, 0);
            head.read(start(k, 1), start(v, 2), strides[5], strides[8], length, dims);
            shares.scores.resize(QUERIES * head.wide());
            shares.weights.resize(QUERIES * head.wide());
            mixed.resize(QUERIES * head.deep());
            for (int64_t at = 0; at < length; at += QUERIES) {
                const uint16_t* queries[QUERIES];  // behind the end the last one again
                for (int64_t m = 0; m < QUERIES; m++) queries[m] = first + std::min(at + m, length - 1) * strides[2];
                score(head, queries, shares);
                soften(head, scale, shares);
                mix_all(head, shares, mixed.data());
                for (int64_t m = 0; m < std::min(QUERIES, length - at); m++)
                    write_row(&mixed[m * head.deep()], dims, out + ((b * length + at + m) * heads + h) * dims);
            }
        }
    }
}
}
