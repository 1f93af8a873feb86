// Products with packed weights; built by `build.py`, called by `__init__.py`.

#include "packed.h"

namespace {

constexpr int64_t SMALL = 1 << 18;  // multiplications that one thread has done before a second one is awake
constexpr int64_t PART = 480;       // rows that are multiplied at once: their sums stay near, and unpacking is a trifle

// How many of `left` rows go into the next tile.
int tile_rows(int64_t left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// y (rows, n), the columns of one panel = sums (rows, LANES) times the activations' scales, plus the bias.
template <typename T>
void write_panel(Tiles x, const float* sums, const float* bias, int64_t begin, int64_t n, T* y) {
    int64_t lanes = std::min(LANES, n - begin), m = 0;
    for (const Activations& tile : x)
        for (int r = 0; r < tile.rows; r++, m++)
            for (int64_t lane = 0; lane < lanes; lane++) {
                float value = sums[m * LANES + lane] * tile.scales[r];
                y[m * n + begin + lane] = narrow<T>(bias ? value + bias[begin + lane] : value);
            }
}

// Returns how many tiles there are.
template <typename T>
int64_t quantize_tiles(const T* x, int64_t rows, int64_t k, int64_t bits, int threads, std::vector<Activations>& tiles) {
    std::vector<int64_t> begins;
    for (int64_t m = 0; m < rows; m += tile_rows(rows - m)) begins.push_back(m);
    if (tiles.size() < begins.size()) tiles.resize(begins.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (rows * k > 1 << 16)
    for (size_t t = 0; t < begins.size(); t++)
        quantize_rows(x + begins[t] * k, tile_rows(rows - begins[t]), k, bits, tiles[t]);
    return begins.size();
}

// y (rows, n) = the weight times tiles of activations, plus the bias.
template <typename T>
void multiply(const Weight& w, Tiles x, const float* bias, T* y, int threads) {
    const int64_t together = std::max<int64_t>(1, w.panels() / (8 * threads));
#pragma omp parallel num_threads(threads) if (w.n * w.k * x.rows() > SMALL)
    {
        Multiplier multiplier;
#pragma omp for schedule(dynamic, together)
        for (int64_t panel = 0; panel < w.panels(); panel++)
            write_panel(x, multiplier.multiply(w, panel, x), bias, panel * LANES, w.n, y);
    }
}

template <typename T>
void product(const Weight& w, const T* x, int64_t rows, const float* bias, T* y, int threads) {
    static thread_local std::vector<Activations> tiles;  // kept: fresh memory takes as long as a tenth of the product
    for (int64_t first = 0; first < rows; first += PART) {
        int64_t count = std::min(PART, rows - first);
        int64_t made = quantize_tiles(x + first * w.k, count, w.k, w.multiplied_bits(), threads, tiles);
        multiply(w, {tiles.data(), made}, bias, y + first * w.n, threads);
    }
}

}  // namespace

extern "C" {

// y (rows, N) = x (rows, K) times the weight, plus bias (N) float or null; x and y are bfloat16 or float32.
void packed_product(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, int64_t bits, int64_t group,
                    int64_t n, int64_t k, int bf16, const void* x, int64_t rows, const float* bias, void* y,
                    int threads) {
    Weight w{codes, scales, zeros, bits, group, n, k};
    if (bf16) product(w, (const uint16_t*)x, rows, bias, (uint16_t*)y, threads);
    else product(w, (const float*)x, rows, bias, (float*)y, threads);
}
}
