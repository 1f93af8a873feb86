// Products with packed weights and decoded tokens, for a processor that is emulated: cases are read from standard input
// and results written to standard output. tests/test_packed_arm.py has the form.

#include <cstdio>
#include <cstdlib>

#include "decode.cpp"
#include "product.cpp"

namespace {

using Bytes = std::vector<uint8_t>;

void read(void* to, size_t bytes) {
    if (bytes && std::fread(to, bytes, 1, stdin) != 1) std::exit(3);
}
int64_t read_number() {
    int64_t number;
    read(&number, sizeof number);
    return number;
}
Bytes read_bytes() {
    Bytes bytes(read_number());
    read(bytes.data(), bytes.size());
    return bytes;
}
template <typename T>
T* start(Bytes& bytes) { return bytes.empty() ? nullptr : (T*)bytes.data(); }

// bits, group, n, k, and the four tensors, whose bytes `kept` holds
Linear read_linear(std::vector<Bytes>& kept) {
    int64_t shape[4];
    read(shape, sizeof shape);
    Bytes* tensors[4];
    for (Bytes*& tensor : tensors) {
        kept.push_back(read_bytes());
        tensor = &kept.back();
    }
    return {tensors[0]->data(), start<uint16_t>(*tensors[1]), start<uint8_t>(*tensors[2]), start<float>(*tensors[3]),
            shape[0], shape[1], shape[2], shape[3]};
}

// a linear layer; whether x is bfloat16, its rows, threads; x
void multiply() {
    std::vector<Bytes> kept;
    kept.reserve(4);
    Linear w = read_linear(kept);
    int64_t bf16 = read_number(), rows = read_number(), threads = read_number();
    Bytes x = read_bytes(), y(rows * w.n * (bf16 ? 2 : 4));
    packed_product((const uint8_t*)w.weight, w.scales, w.zeros, w.bits, w.group, w.n, w.k, int(bf16), x.data(), rows,
                   w.bias, y.data(), int(threads));
    std::fwrite(y.data(), y.size(), 1, stdout);
}

// heads, key-value heads, head_dim, position, capacity, threads; two norms, seven linear layers; keys, values; hidden,
// cosine, sine
void decode() {
    int64_t shape[6];
    read(shape, sizeof shape);
    Bytes attention_norm = read_bytes(), mlp_norm = read_bytes();
    std::vector<Bytes> kept;
    kept.reserve(28);
    Linear linears[7];
    for (Linear& linear : linears) linear = read_linear(kept);
    Bytes keys = read_bytes(), values = read_bytes(), hidden = read_bytes(), cosine = read_bytes(), sine = read_bytes();
    Layer layer{start<uint16_t>(attention_norm), start<uint16_t>(mlp_norm), start<uint16_t>(keys), start<uint16_t>(values),
                shape[0], shape[1], shape[2], linears[0], linears[1], linears[2], linears[3], linears[4], linears[5],
                linears[6]};
    Token token{start<float>(hidden), start<float>(cosine), start<float>(sine), int64_t(hidden.size() / 4), shape[3],
                shape[4], 1e-6};
    decode_token(&layer, 1, &token, int(shape[5]));
    std::fwrite(hidden.data(), hidden.size(), 1, stdout);
}

}  // namespace

int main() {
    int64_t cases = read_number();
    for (int64_t i = 0; i < cases; i++) {
        if (read_number()) decode();
        else multiply();
    }
}
