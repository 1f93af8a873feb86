// Products with packed weights and one decoded token, for a processor that is emulated: cases are read from standard
// input and results written to standard output. tests/test_packed_arm.py has the form.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" void packed_product(const uint8_t*, const uint16_t*, const uint8_t*, int64_t, int64_t, int64_t, int64_t, int,
                               const void*, int64_t, const float*, void*, int);
extern "C" void decode_token(const void*, int64_t, const void*, int);

using Bytes = std::vector<uint8_t>;

void read(void* to, size_t bytes) {
    if (bytes && std::fread(to, bytes, 1, stdin) != 1) std::exit(3);
}
Bytes read_bytes() {
    int64_t count;
    read(&count, sizeof count);
    Bytes bytes(count);
    read(bytes.data(), bytes.size());
    return bytes;
}

// shape: bits, group, n, k, bf16, rows, bytes of the result, threads
void product() {
    int64_t shape[8];
    read(shape, sizeof shape);
    Bytes codes = read_bytes(), scales = read_bytes(), zeros = read_bytes(), x = read_bytes(), bias = read_bytes();
    Bytes y(shape[6]);
    packed_product(codes.data(), (const uint16_t*)scales.data(), zeros.data(), shape[0], shape[1], shape[2], shape[3],
                   int(shape[4]), x.data(), shape[5], (const float*)bias.data(), y.data(), int(shape[7]));
    std::fwrite(y.data(), y.size(), 1, stdout);
}

int main() {
    int64_t products;
    read(&products, sizeof products);
    for (int64_t i = 0; i < products; i++) product();
}
