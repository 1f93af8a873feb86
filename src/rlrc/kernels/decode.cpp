// One token through all layers of a Llama decoder, in one call: what decoding at batch 1 is made of.
//
// Seven small products a layer would each wake the other threads, and that takes longer than the product does. Here the
// threads are woken once a token, go through the layers together, and wait for each other by looking, not by sleeping.
// Weights are bfloat16 or packed; what flows between them is float32 (int8 where it meets packed weights).

#include <omp.h>
#include <sched.h>

#include <atomic>

#include "packed.h"

namespace {

// These three mirror the classes of the same names in decode.py.
struct Linear {
    const void* weight;  // bfloat16 (n, k), or codes
    const uint16_t* scales;
    const uint8_t* zeros;
    const float* bias;  // or null
    int64_t bits, group, n, k;
};
struct Layer {
    const uint16_t *attention_norm, *mlp_norm;
    uint16_t *keys, *values;  // bfloat16 (key-value heads, capacity, head_dim)
    int64_t heads, key_value_heads, head_dim;
    Linear q, k, v, o, gate, up, down;
};
struct Token {
    float* hidden;              // (width): what comes in, and goes out
    const float *cosine, *sine;  // (head_dim)
    int64_t width, position, capacity;
    double eps;
};

using Floats = std::vector<float>;

// Threads that share the work, and wait until all have come so far.
class Team {
public:
    void wait(int size) {
        int phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int looks = 0; phase_.load(std::memory_order_acquire) == phase; looks++) {
            if (looks < 1 << 14) _mm_pause();
            else sched_yield();  // somebody else needs the processor
        }
    }

private:
    std::atomic<int> arrived_{0}, phase_{0};
};

// A thread's share of n rows.
struct Share {
    int number, count;
    int64_t begin(int64_t n) const { return n * number / count; }
    int64_t end(int64_t n) const { return n * (number + 1) / count; }
};

// Even and odd elements of 32 bfloat16 values.
void halves(__m512i pairs, __m512& even, __m512& odd) {
    even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000))));
}
__mmask32 first_pairs(int64_t count) { return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1; }

// A vector that rows of bfloat16 are multiplied with: 16 even elements, then 16 odd ones, and so on.
Floats deinterleave(const float* x, int64_t k) {
    Floats out((k + 31) / 32 * 32, 0.0f);
    for (int64_t j = 0; j < k; j++) out[j / 32 * 32 + j % 2 * 16 + j % 32 / 2] = x[j];
    return out;
}

// One row of bfloat16 times x, which is deinterleaved.
float dot_bf16(const uint16_t* row, int64_t k, const float* x) {
    __m512 sums[8];  // as many as there are additions on their way at once
    for (__m512& sum : sums) sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < k; j += 128) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; u++) {
            int64_t at = j + 32 * u;
            if (at >= k) break;
            __m512 even, odd;
            halves(_mm512_maskz_loadu_epi16(first_pairs(k - at), row + at), even, odd);
            sums[2 * u] = _mm512_fmadd_ps(even, _mm512_loadu_ps(x + at), sums[2 * u]);
            sums[2 * u + 1] = _mm512_fmadd_ps(odd, _mm512_loadu_ps(x + at + 16), sums[2 * u + 1]);
        }
    }
    for (int u = 1; u < 8; u++) sums[0] = _mm512_add_ps(sums[0], sums[u]);
    return _mm512_reduce_add_ps(sums[0]);
}

// out[0..count): rows (count, k) times x, which is deinterleaved.
void dot_rows_bf16(const uint16_t* rows, int64_t count, int64_t k, const float* x, float* out) {
    for (int64_t i = 0; i < count; i++) out[i] = dot_bf16(rows + i * k, k, x);
}

// What goes into a product, in the form that each kind of weight wants; made when it is first asked for.
class Input {
public:
    Input(const float* x, int64_t k) : x_(x), k_(k) {}

    // out[begin..end) = those rows of the layer times the input, plus their bias.
    void multiply(const Linear& layer, int64_t begin, int64_t end, float* out) {
        if (layer.bits == 16) multiply_bf16(layer, begin, end, out);
        else multiply_packed(layer, begin, end, out);
        if (layer.bias)
            for (int64_t i = begin; i < end; i++) out[i] += layer.bias[i];
    }

private:
    void multiply_bf16(const Linear& layer, int64_t begin, int64_t end, float* out) {
        if (floats_.empty()) floats_ = deinterleave(x_, k_);
        dot_rows_bf16((const uint16_t*)layer.weight + begin * k_, end - begin, k_, floats_.data(), out + begin);
    }

    void multiply_packed(const Linear& layer, int64_t begin, int64_t end, float* out) {
        Weight w{(const uint8_t*)layer.weight, layer.scales, layer.zeros, layer.bits, layer.group, layer.n, layer.k};
        std::vector<Vector>& x = layer.bits == 4 ? four_ : eight_;
        if (x.empty()) x.push_back(quantize_vector(x_, k_, layer.bits));
        for (int64_t i = begin; i < end; i++) {
            if (layer.bits == 4) dot_rows<4, 1>(w, i, x.data(), out + i);
            else dot_rows<8, 1>(w, i, x.data(), out + i);
        }
    }

    const float* x_;
    const int64_t k_;
    Floats floats_;
    std::vector<Vector> four_, eight_;
};

Floats rms_norm(const float* x, int64_t n, const uint16_t* weight, double eps) {
    double squares = 0.0;
    for (int64_t i = 0; i < n; i++) squares += double(x[i]) * x[i];
    float scale = float(1.0 / std::sqrt(squares / n + eps));
    Floats out(n);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * Weight::widen(weight[i]);
    return out;
}

// Rotary position embedding of one head.
void rotate(float* head, const Token& token, int64_t head_dim) {
    int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * token.cosine[i] - b * token.sine[i];
        head[i + half] = b * token.cosine[i + half] + a * token.sine[i + half];
    }
}

void store_bf16(uint16_t* to, const float* from, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store(to + i, first_lanes(n - i), load(from + i, first_lanes(n - i)));
}

void softmax(Floats& scores) {
    float top = *std::max_element(scores.begin(), scores.end()), sum = 0.0f;
    for (float& score : scores) sum += score = std::exp(score - top);
    for (float& score : scores) score /= sum;
}

// out (head_dim) = weights (count) times values (count, head_dim).
void mix(const Floats& weights, const uint16_t* values, int64_t head_dim, float* out) {
    for (int64_t d = 0; d < head_dim; d += 16) {
        __mmask16 mask = first_lanes(head_dim - d);
        __m512 sum = _mm512_setzero_ps();
        for (size_t t = 0; t < weights.size(); t++)
            sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[t]), load(values + t * head_dim + d, mask), sum);
        store(out + d, mask, sum);
    }
}

// One key-value head and the query heads that share it: remember the new key and value, then look at all so far.
void attend(const Layer& layer, const Token& token, int64_t head, Floats& q, Floats& k, Floats& v, float* out) {
    int64_t d = layer.head_dim, seen = token.position + 1, shared = layer.heads / layer.key_value_heads;
    uint16_t* keys = layer.keys + head * token.capacity * d;
    uint16_t* values = layer.values + head * token.capacity * d;
    rotate(&k[head * d], token, d);
    store_bf16(keys + token.position * d, &k[head * d], d);
    store_bf16(values + token.position * d, &v[head * d], d);
    Floats scores(seen);
    for (int64_t query = head * shared; query < (head + 1) * shared; query++) {
        rotate(&q[query * d], token, d);
        for (int64_t i = 0; i < d; i++) q[query * d + i] /= std::sqrt(float(d));
        dot_rows_bf16(keys, seen, d, deinterleave(&q[query * d], d).data(), scores.data());
        softmax(scores);
        mix(scores, values, d, out + query * d);
    }
}

// What the threads hand to each other.
struct Shared {
    Floats q, k, v, attended, inner, out;
};

void pass(const Layer& layer, const Token& token, Share share, Team& team, Shared& s) {
    auto multiply = [&](Input& input, const Linear& linear, Floats& out) {
        input.multiply(linear, share.begin(linear.n), share.end(linear.n), out.data());
    };
    auto add = [&] {
        for (int64_t i = share.begin(token.width); i < share.end(token.width); i++) token.hidden[i] += s.out[i];
        team.wait(share.count);
    };

    Floats normed = rms_norm(token.hidden, token.width, layer.attention_norm, token.eps);
    Input entering(normed.data(), token.width);
    multiply(entering, layer.q, s.q);
    multiply(entering, layer.k, s.k);
    multiply(entering, layer.v, s.v);
    team.wait(share.count);
    int64_t heads = layer.key_value_heads;
    for (int64_t head = share.begin(heads); head < share.end(heads); head++)
        attend(layer, token, head, s.q, s.k, s.v, s.attended.data());
    team.wait(share.count);
    Input attended(s.attended.data(), layer.o.k);
    multiply(attended, layer.o, s.out);
    add();

    normed = rms_norm(token.hidden, token.width, layer.mlp_norm, token.eps);
    Input between(normed.data(), token.width);
    multiply(between, layer.gate, s.inner);
    multiply(between, layer.up, s.q);  // the queries are done with
    for (int64_t i = share.begin(layer.up.n); i < share.end(layer.up.n); i++)
        s.inner[i] *= s.q[i] / (1.0f + std::exp(-s.inner[i]));
    team.wait(share.count);
    Input inner(s.inner.data(), layer.down.k);
    multiply(inner, layer.down, s.out);
    add();
}

}  // namespace

extern "C" {

void decode_token(const Layer* layers, int64_t count, const Token* token, int threads) {
    int64_t widest = token->width;
    for (int64_t i = 0; i < count; i++) widest = std::max({widest, layers[i].q.n, layers[i].k.n, layers[i].up.n});
    Floats room(widest);
    Shared shared{room, room, room, room, room, room};
    Team team;
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < count; i++)
        pass(layers[i], *token, Share{omp_get_thread_num(), omp_get_num_threads()}, team, shared);
}
}
