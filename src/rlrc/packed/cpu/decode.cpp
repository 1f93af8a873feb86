// One token through all layers of a Llama decoder, in one call: what decoding at batch 1 is made of.
//
// Seven small products a layer would each wake the other threads, and that takes longer than the product does. Here the
// threads are woken once a token and go through the layers together (team.h). Weights are bfloat16 or packed; what flows
// between them is float32 (int8 where it meets packed weights).

#include "packed.h"
#include "team.h"

namespace {

// These three mirror the classes of the same names in decode.py.
struct Linear {
    const void* weight;  // bfloat16 (n, k), or codes
    const uint16_t* scales;
    const uint8_t* zeros;
    const float* bias;  // or null
    int64_t bits, group, n, k;

    int64_t panels() const { return (n + LANES - 1) / LANES; }
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

using Vector = std::vector<float>;

// A vector that rows of bfloat16 are multiplied with: 16 even elements, then 16 odd ones, and so on.
Vector deinterleave(const float* x, int64_t k) {
    Vector out((k + 63) / 64 * 64, 0.0f);
    for (int64_t j = 0; j < k; j++) out[j / 32 * 32 + j % 2 * 16 + j % 32 / 2] = x[j];
    return out;
}

float sum_of_lanes(Floats a) {
    float lanes[LANES];
    store_floats(lanes, a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

// One row of bfloat16 times x, which is deinterleaved.
float dot_bf16(const uint16_t* row, int64_t k, const float* x) {
    Floats sums[4] = {fill(0.0f), fill(0.0f), fill(0.0f), fill(0.0f)};  // as many additions can be on their way at once
    auto add = [&](const uint16_t* from, int64_t j) {
        for (int half = 0; half < 2; half++) {
            Words pairs = load_words((const uint8_t*)(from + 32 * half));
            const float* at = x + j + 32 * half;
            sums[2 * half] = fma(low_bf16(pairs), load_floats(at), sums[2 * half]);
            sums[2 * half + 1] = fma(high_bf16(pairs), load_floats(at + 16), sums[2 * half + 1]);
        }
    };
    int64_t whole = k / 64 * 64;
    for (int64_t j = 0; j < whole; j += 64) {
        prefetch((const char*)(row + j) + AHEAD, 128);
        add(row + j, j);
    }
    if (whole < k) {
        uint16_t rest[64] = {};
        std::memcpy(rest, row + whole, (k - whole) * sizeof(uint16_t));
        add(rest, whole);
    }
    float total = 0.0f;
    for (Floats sum : sums) total += sum_of_lanes(sum);
    return total;
}

// What goes into a product, in the form that each kind of weight wants; made when it is first asked for.
class Input {
public:
    Input(const float* x, int64_t k) : x_(x), k_(k) {}

    // out (LANES): a panel of the layer times the input, plus the bias; returns how many of them there are.
    int64_t multiply(const Linear& layer, int64_t panel, Multiplier& multiplier, float* out) {
        int64_t begin = panel * LANES, count = std::min(LANES, layer.n - begin);
        if (layer.bits == 16) multiply_bf16((const uint16_t*)layer.weight + begin * k_, count, out);
        else multiply_packed(layer, panel, multiplier, out);
        if (layer.bias)
            for (int64_t i = 0; i < count; i++) out[i] += layer.bias[begin + i];
        return count;
    }

private:
    void multiply_bf16(const uint16_t* rows, int64_t count, float* out) {
        if (floats_.empty()) floats_ = deinterleave(x_, k_);
        for (int64_t i = 0; i < count; i++) out[i] = dot_bf16(rows + i * k_, k_, floats_.data());
    }

    void multiply_packed(const Linear& layer, int64_t panel, Multiplier& multiplier, float* out) {
        Weight w{(const uint8_t*)layer.weight, layer.scales, layer.zeros, layer.bits, layer.group, layer.n, layer.k};
        std::vector<Activations>& x = layer.bits == 8 ? eight_ : four_;
        if (x.empty()) quantize_rows(x_, 1, k_, w.multiplied_bits(), x.emplace_back());
        const float* sums = multiplier.multiply(w, panel, {x.data(), 1});
        for (int64_t i = 0; i < LANES; i++) out[i] = sums[i] * x[0].scales[0];
    }

    const float* x_;
    const int64_t k_;
    Vector floats_;
    std::vector<Activations> four_, eight_;
};

Vector rms_norm(const float* x, int64_t n, const uint16_t* weight, double eps) {
    double squares[8] = {};
    for (int64_t i = 0; i < n; i++) squares[i % 8] += double(x[i]) * x[i];
    for (int i = 1; i < 8; i++) squares[0] += squares[i];
    float scale = float(1.0 / std::sqrt(squares[0] / n + eps));
    Vector out(n);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * widen(weight[i]);
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

void softmax(Vector& scores) {
    float top = *std::max_element(scores.begin(), scores.end()), sum = 0.0f;
    for (float& score : scores) sum += score = std::exp(score - top);
    for (float& score : scores) score /= sum;
}

// One key-value head and the query heads that share it: remember the new key and value, then look at all so far.
void attend(const Layer& layer, const Token& token, int64_t head, Vector& q, Vector& k, Vector& v, float* out) {
    int64_t d = layer.head_dim, seen = token.position + 1, shared = layer.heads / layer.key_value_heads;
    uint16_t* keys = layer.keys + head * token.capacity * d;
    uint16_t* values = layer.values + head * token.capacity * d;
    rotate(&k[head * d], token, d);
    for (int64_t i = 0; i < d; i++) {
        keys[token.position * d + i] = narrow<uint16_t>(k[head * d + i]);
        values[token.position * d + i] = narrow<uint16_t>(v[head * d + i]);
    }
    Vector scores(seen);
    for (int64_t query = head * shared; query < (head + 1) * shared; query++) {
        rotate(&q[query * d], token, d);
        for (int64_t i = 0; i < d; i++) q[query * d + i] /= std::sqrt(float(d));
        Vector looking = deinterleave(&q[query * d], d);
        for (int64_t t = 0; t < seen; t++) scores[t] = dot_bf16(keys + t * d, d, looking.data());
        softmax(scores);
        float* mixed = out + query * d;
        std::fill(mixed, mixed + d, 0.0f);
        for (int64_t t = 0; t < seen; t++)
            for (int64_t i = 0; i < d; i++) mixed[i] += scores[t] * widen(values[t * d + i]);
    }
}

// What the threads hand to each other.
struct Shared {
    Vector q, k, v, attended, inner;
};

// One thread's way through the layers.
class Walk {
public:
    Walk(const Token& token, Team& team, Shared& shared, int threads)
        : token_(token), team_(team), shared_(shared), threads_(threads) {}

    void pass(const Layer& layer) {
        project(layer);
        team_.share(piece_, layer.key_value_heads, 1, [&](int64_t head) {
            attend(layer, token_, head, shared_.q, shared_.k, shared_.v, shared_.attended.data());
        });
        add_product(layer.o, shared_.attended);
        squeeze(layer);
        add_product(layer.down, shared_.inner);
    }

private:
    template <typename F>
    void share_panels(int64_t panels, F work) {
        team_.share(piece_, panels, std::max<int64_t>(1, panels / (4 * threads_)), work);
    }

    // Queries, keys and values.
    void project(const Layer& layer) {
        Vector normed = rms_norm(token_.hidden, token_.width, layer.attention_norm, token_.eps);
        Input input(normed.data(), token_.width);
        const int64_t queries = layer.q.panels(), keys = layer.k.panels();
        share_panels(queries + keys + layer.v.panels(), [&](int64_t panel) {
            if (panel < queries) multiply(input, layer.q, panel, shared_.q);
            else if (panel < queries + keys) multiply(input, layer.k, panel - queries, shared_.k);
            else multiply(input, layer.v, panel - queries - keys, shared_.v);
        });
    }

    void multiply(Input& input, const Linear& linear, int64_t panel, Vector& to) {
        float out[LANES];
        int64_t count = input.multiply(linear, panel, multiplier_, out);
        std::copy(out, out + count, &to[panel * LANES]);
    }

    // hidden += the product of a linear layer.
    void add_product(const Linear& linear, const Vector& x) {
        Input input(x.data(), linear.k);
        share_panels(linear.panels(), [&](int64_t panel) {
            float out[LANES];
            int64_t count = input.multiply(linear, panel, multiplier_, out);
            for (int64_t i = 0; i < count; i++) token_.hidden[panel * LANES + i] += out[i];
        });
    }

    // The inner activations of the MLP.
    void squeeze(const Layer& layer) {
        Vector normed = rms_norm(token_.hidden, token_.width, layer.mlp_norm, token_.eps);
        Input input(normed.data(), token_.width);
        share_panels(layer.gate.panels(), [&](int64_t panel) {
            float gate[LANES], up[LANES];
            int64_t count = input.multiply(layer.gate, panel, multiplier_, gate);
            input.multiply(layer.up, panel, multiplier_, up);
            for (int64_t i = 0; i < count; i++)
                shared_.inner[panel * LANES + i] = gate[i] * (up[i] / (1.0f + std::exp(-gate[i])));
        });
    }

    const Token& token_;
    Team& team_;
    Shared& shared_;
    const int threads_;
    uint32_t piece_ = 0;
    Multiplier multiplier_;
};

}  // namespace

extern "C" {

void decode_token(const Layer* layers, int64_t count, const Token* token, int threads) {
    int64_t widest = token->width;
    for (int64_t i = 0; i < count; i++) widest = std::max({widest, layers[i].q.n, layers[i].k.n, layers[i].up.n});
    Vector room(widest);
    Shared shared{room, room, room, room, room};
    Team team;
#pragma omp parallel num_threads(threads)
    {
        Walk walk(*token, team, shared, threads);
        for (int64_t i = 0; i < count; i++) walk.pass(layers[i]);
    }
}
}
