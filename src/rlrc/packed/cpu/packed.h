// Packed weights, activations as 8-bit integers, and the product of one with the other.
//
// A weight is `codes` (N, W) uint8, a row of K codes of 2, 3, 4 or 8 bits without gaps, the lowest bits first, `scales`
// bfloat16 (N, G) and `zeros` (N, G) packed like the codes: w = (code - zero) * scale, a group being a multiple of 32
// columns. The files of a checkpoint have this layout, and it is what is read here. Codes of 2 and 3 bits become codes
// of 4 bits, sixteen rows at a time, when they are multiplied.
//
// Activations become int8, row by row, with the row's largest magnitude as 127. A row of the weight times a row of
// activations is
//
//   y = 0;  for each block of 32 columns, in their order:  y = y + scale * (sum of (code - zero) * activation)
//
// with the sum exact and each step rounded once, then y times the activations' scale, plus the bias. So neither the
// number of rows nor of threads nor the processor changes a bit of it.

#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t BLOCK = 32;        // columns that certainly share a scale
constexpr int64_t SPAN = 32;         // blocks that are unpacked at once, for all rows of activations: 16 KiB
constexpr int64_t CHUNK = 16;        // bytes of each row that `transpose` reads
constexpr int64_t AHEAD = 4096;      // bytes: the processor itself looks ahead no further than to the end of a page
constexpr int64_t MEANWHILE = 192;   // bytes of codes that memory brings while a block of a panel is added up

inline float widen(uint16_t bf16) {
    uint32_t bits = uint32_t(bf16) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float widen(float value) { return value; }

template <typename T>
T narrow(float value);
template <>
inline float narrow<float>(float value) { return value; }
template <>
inline uint16_t narrow<uint16_t>(float value) {  // to the nearest bfloat16, to the even one half-way
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

struct Weight {
    const uint8_t* codes;
    const uint16_t* scales;
    const uint8_t* zeros;
    int64_t bits, group, n, k;

    int64_t groups() const { return (k + group - 1) / group; }
    int64_t blocks() const { return (k + BLOCK - 1) / BLOCK; }
    int64_t panels() const { return (n + LANES - 1) / LANES; }
    int64_t width(int64_t count) const { return (count * bits + 7) / 8; }  // bytes of that many codes
    int64_t multiplied_bits() const { return bits == 8 ? 8 : 4; }
};

// ---- activations ----------------------------------------------------------------------------------------------------

// Up to TILE rows of activations as the panels meet them: [quad of columns][row][4], filled up with zeros. With 4 bits
// `codes` are the even columns and `odd` the others.
struct Activations {
    int rows = 0;
    std::vector<int8_t> codes, odd;
    std::vector<float> sums;  // [block][row]
    float scales[TILE];
};

// Neighbouring tiles.
struct Tiles {
    const Activations* first;
    int64_t count;

    const Activations* begin() const { return first; }
    const Activations* end() const { return first + count; }
    int64_t rows() const {
        int64_t sum = 0;
        for (const Activations& tile : *this) sum += tile.rows;
        return sum;
    }
};

// The scale that brings a row of activations to int8; NaN where the row holds NaN or an infinity.
template <typename T>
float activation_scale(const T* x, int64_t k) {
    int32_t top = 0;  // floats are ordered as the integers that have their bits
    for (int64_t j = 0; j < k; j++) {
        float value = std::fabs(widen(x[j]));
        int32_t bits;
        std::memcpy(&bits, &value, 4);
        top = std::max(top, bits);
    }
    float largest;
    std::memcpy(&largest, &top, 4);
    if (top >= 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
    return top ? largest / 127.0f : 1.0f;
}

// The integers nearest to x / scale, the even one half-way.
template <typename T>
void quantize(const T* x, int64_t k, float scale, int8_t* codes) {
    const float inverse = 1.0f / scale, shift = 12582912.0f;  // 1.5 * 2^23: floats from there on are the integers
    for (int64_t j = 0; j < k; j++) {
        float moved = widen(x[j]) * inverse + shift;
        int32_t bits;
        std::memcpy(&bits, &moved, 4);
        codes[j] = int8_t(bits);
    }
}

// The even bytes of eight, as four.
inline uint32_t even_bytes(uint64_t eight) {
    eight &= 0x00ff00ff00ff00ff;
    eight = (eight | eight >> 8) & 0x0000ffff0000ffff;
    return uint32_t(eight | eight >> 16);
}

// Put the codes of a row where they belong.
inline void place(const int8_t* codes, int64_t columns, int64_t bits, int row, Activations& to) {
    int64_t step = 4 * to.rows;
    for (int64_t eight = 0; eight < columns / 8; eight++) {
        uint64_t values;
        std::memcpy(&values, codes + 8 * eight, 8);
        if (bits == 4) {
            uint32_t even = even_bytes(values), odd = even_bytes(values >> 8);
            std::memcpy(&to.codes[eight * step + 4 * row], &even, 4);
            std::memcpy(&to.odd[eight * step + 4 * row], &odd, 4);
        } else {
            std::memcpy(&to.codes[2 * eight * step + 4 * row], &values, 4);
            std::memcpy(&to.codes[(2 * eight + 1) * step + 4 * row], (const char*)&values + 4, 4);
        }
    }
}

// What `a` held before is written over, and its memory is kept.
template <typename T>
void quantize_rows(const T* x, int rows, int64_t k, int64_t bits, Activations& a) {
    int64_t blocks = (k + BLOCK - 1) / BLOCK, columns = (blocks + 15) / 16 * 16 * BLOCK;
    a.rows = rows;
    a.codes.resize(rows * columns * bits / 8);
    a.odd.resize(bits == 4 ? rows * columns / 2 : 0);
    a.sums.resize(rows * blocks);
    std::vector<int8_t> codes(columns, 0);
    for (int m = 0; m < rows; m++) {
        a.scales[m] = activation_scale(x + m * k, k);
        quantize(x + m * k, k, a.scales[m], codes.data());
        for (int64_t b = 0; b < blocks; b++) {
            int32_t sum = 0;
            for (int64_t j = b * BLOCK; j < (b + 1) * BLOCK; j++) sum += codes[j];
            a.sums[b * rows + m] = float(sum);
        }
        place(codes.data(), columns, bits, m, a);
    }
}

// ---- weights --------------------------------------------------------------------------------------------------------

// SPAN blocks of a panel, unpacked.
struct alignas(64) Span {
    uint8_t codes[SPAN][8 * LANES * 4];  // [block][quad of columns][lane][4]
    float scales[SPAN][LANES], zeros[SPAN][LANES];  // of the groups in it
    int32_t group[SPAN];  // of each block, among those
};

// Rows of a table of bytes from which `transpose` reads. What lies behind a row's end is read as well, but nothing
// behind the table's.
struct Table {
    const uint8_t* at;
    int64_t stride, rows;
    const uint8_t* end;

    void read(int64_t offset, Words (&out)[4]) const {
        const uint8_t* from = at + offset;
        if (rows == LANES && from + (LANES - 1) * stride + CHUNK <= end) return transpose(from, stride, out);
        alignas(64) uint8_t copy[LANES * CHUNK] = {};
        for (int64_t r = 0; r < rows; r++, from += stride)
            if (from < end) std::memcpy(copy + r * CHUNK, from, std::min<int64_t>(CHUNK, end - from));
        transpose(copy, CHUNK, out);
    }
};

template <int BITS>
void unpack_codes(const Table& codes, int64_t blocks, Span& span) {
    for (int64_t b = 0; b < blocks; b++) {
        Words quads[4];
        if (BITS == 4) {
            codes.read(b * CHUNK, quads);
            for (int i = 0; i < 4; i++) {
                store_words(span.codes[b] + i * LANES * 4, low_nibbles(quads[i]));
                store_words(span.codes[b] + (4 + i) * LANES * 4, high_nibbles(quads[i]));
            }
        } else {
            for (int half = 0; half < 2; half++) {
                codes.read((2 * b + half) * CHUNK, quads);
                for (int i = 0; i < 4; i++) store_words(span.codes[b] + (4 * half + i) * LANES * 4, quads[i]);
            }
        }
    }
}

inline void unpack_scales(const Table& scales, int64_t groups, Span& span) {
    for (int64_t g = 0; g < groups; g += 8) {
        Words quads[4];
        scales.read(2 * g, quads);
        for (int i = 0; i < 4; i++) {
            store_floats(span.scales[g + 2 * i], low_bf16(quads[i]));
            store_floats(span.scales[g + 2 * i + 1], high_bf16(quads[i]));
        }
    }
}

template <int BITS>
void unpack_zeros(const Table& zeros, int64_t groups, int64_t skipped, Span& span) {
    constexpr int FIELDS = 32 / BITS;  // of a lane
    for (int64_t g = -skipped; g < groups; g += 4 * FIELDS) {
        Words quads[4];
        zeros.read((g + skipped) * BITS / 8, quads);
        for (int i = 0; i < 4 * FIELDS; i++)
            if (g + i >= 0 && g + i < groups) store_floats(span.zeros[g + i], field<BITS>(quads[i / FIELDS], i % FIELDS));
    }
}

// The group of each block from the `first` on, among the groups from that of the first on; returns how many there are.
inline int64_t number_groups(int64_t group_size, int64_t first, int64_t count, Span& span) {
    int64_t column = first * BLOCK % group_size;
    int32_t group = 0;
    for (int64_t b = 0; b < count; b++, column += BLOCK) {
        if (column == group_size) column = 0, group++;
        span.group[b] = group;
    }
    return group + 1;
}

// Where a panel's rows of one of the weight's tables begin, `skipped` bytes behind their start.
inline Table table_of(const Weight& w, const void* data, int64_t width, int64_t panel, int64_t skipped) {
    const uint8_t* from = (const uint8_t*)data;
    return {from + panel * LANES * width + skipped, width, std::min(LANES, w.n - panel * LANES), from + w.n * width};
}

// Unpack scales and zero points of the blocks [first, first + count) of a panel.
template <int BITS>
void unpack_groups(const Weight& w, int64_t panel, int64_t first, int64_t count, Span& span) {
    int64_t group = first * BLOCK / w.group, groups = number_groups(w.group, first, count, span);
    unpack_scales(table_of(w, w.scales, 2 * w.groups(), panel, 2 * group), groups, span);
    Table zeros = table_of(w, w.zeros, w.width(w.groups()), panel, group * BITS / 8);
    unpack_zeros<BITS>(zeros, groups, group * BITS % 8 / BITS, span);
}

// Sixteen codes of 2 or 3 bits, each in 4 bits of its own; what lies above them is left out.
template <int BITS>
uint64_t spread(uint64_t x) {
    if (BITS == 3) {
        x = (x & 0xffffff) | (x & 0xffffff000000) << 8;
        x = (x & 0x00000fff00000fff) | (x & 0x00fff00000fff000) << 4;
        x = (x & 0x003f003f003f003f) | (x & 0x0fc00fc00fc00fc0) << 2;
        return (x & 0x0707070707070707) | (x & 0x3838383838383838) << 1;
    }
    x = (x & 0xffff) | (x & 0xffff0000) << 16;
    x = (x & 0x000000ff000000ff) | (x & 0x0000ff000000ff00) << 8;
    x = (x & 0x000f000f000f000f) | (x & 0x00f000f000f000f0) << 4;
    return (x & 0x0303030303030303) | (x & 0x0c0c0c0c0c0c0c0c) << 2;
}

// Rows of `count` codes of 2 or 3 bits as rows of codes of 4 bits.
template <int BITS>
void widen_codes(const uint8_t* from, int64_t rows, int64_t count, std::vector<uint8_t>& to) {
    int64_t narrow = (count * BITS + 7) / 8, wide = (count + 1) / 2;
    to.resize(rows * wide);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t* codes = from + r * narrow;
        uint8_t* out = to.data() + r * wide;
        auto move = [&](int64_t sixteen, int64_t bytes, int64_t room) {
            uint64_t x = 0;
            std::memcpy(&x, codes + 2 * BITS * sixteen, bytes);
            x = spread<BITS>(x);
            std::memcpy(out + 8 * sixteen, &x, room);
        };
        int64_t sixteen = 0;
        for (; 2 * BITS * sixteen + 8 <= narrow; sixteen++) move(sixteen, 8, 8);  // eight bytes are read at once
        for (; 16 * sixteen < count; sixteen++)
            move(sixteen, std::min<int64_t>(2 * BITS, narrow - 2 * BITS * sixteen),
                 std::min<int64_t>(8, wide - 8 * sixteen));
    }
}

// ---- products -------------------------------------------------------------------------------------------------------
//
// Both give the same bits. `panel_times_tiles` unpacks a panel once for all activations; `panel_times_row` reads the
// weight row after row, as memory likes it, which is faster for a single row of activations.

// y += scale * (dot - zero * sum) of one block, for each row of activations.
template <int ROWS>
void add_block(const Span& span, int64_t b, const Words (&dot)[ROWS], const float* sums, Floats (&y)[ROWS]) {
    Floats scale = load_floats(span.scales[span.group[b]]), zero = load_floats(span.zeros[span.group[b]]);
    for (int m = 0; m < ROWS; m++) y[m] = fma(fnma(zero, fill(sums[m]), to_floats(dot[m])), scale, y[m]);
}

// y (ROWS, LANES) += `count` blocks of a panel, from the `first` on, times ROWS rows of activations.
template <int BITS, int ROWS>
void add_span(const Span& span, const Activations& x, int64_t first, int64_t count, float* y) {
    Floats sums[ROWS];
    for (int m = 0; m < ROWS; m++) sums[m] = load_floats(y + m * LANES);
    for (int64_t b = 0; b < count; b++) {
        int64_t at = (first + b) * ROWS * (BITS == 4 ? BLOCK / 2 : BLOCK);
        Words dot[ROWS];
        dots<BITS, ROWS>(span.codes[b], &x.codes[at], BITS == 4 ? &x.odd[at] : &x.codes[at + ROWS * BLOCK / 2], dot);
        add_block<ROWS>(span, b, dot, &x.sums[(first + b) * ROWS], sums);
    }
    for (int m = 0; m < ROWS; m++) store_floats(y + m * LANES, sums[m]);
}

template <int BITS>
void panel_times_tiles(const Weight& w, int64_t panel, Tiles x, Span& span, float* y) {
    for (int64_t first = 0; first < w.blocks(); first += SPAN) {
        int64_t count = std::min(SPAN, w.blocks() - first), row = 0;
        unpack_groups<BITS>(w, panel, first, count, span);
        unpack_codes<BITS>(table_of(w, w.codes, w.width(w.k), panel, w.width(first * BLOCK)), count, span);
        for (const Activations& tile : x) {
            if (tile.rows == TILE) add_span<BITS, TILE>(span, tile, first, count, y + row * LANES);
            else if (tile.rows == 4) add_span<BITS, 4>(span, tile, first, count, y + row * LANES);
            else if (tile.rows == 2) add_span<BITS, 2>(span, tile, first, count, y + row * LANES);
            else add_span<BITS, 1>(span, tile, first, count, y + row * LANES);
            row += tile.rows;
        }
    }
}

// Ask memory for bytes that are needed soon. They go to the second-level cache: the first is full of what is at work.
inline void prefetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)from + at, 0, 2);
}

// The sums of the blocks of a panel times one row of activations, exact.
struct alignas(64) Dots {
    int32_t rows[LANES];
};

// `out`: room for all blocks, and for three more. Four rows at once share what is loaded of the activations.
template <int BITS>
void dot_rows(const Weight& w, int64_t row, const Activations& x, Dots* out) {
    constexpr int64_t STEP = 4, BYTES = STEP * BLOCK * BITS / 8;
    const int64_t width = w.width(w.k), ahead = std::max(AHEAD, 4 * width);
    const uint8_t *from = w.codes + row * width, *end = w.codes + w.n * width;
    for (int64_t b = 0, at = 0; b < w.blocks(); b += STEP, at += BYTES) {
        alignas(64) uint8_t copy[4 * BYTES];
        const uint8_t* codes = from + at;
        int64_t stride = width;
        for (int r = 0; r < 4; r++) prefetch(codes + r * width + ahead, BYTES);
        if (codes + 3 * width + BYTES > end) {
            std::memset(copy, 0, sizeof(copy));
            for (int r = 0; r < 4 && codes < end; r++, codes += width)
                std::memcpy(copy + r * BYTES, codes, std::min<int64_t>(BYTES, end - codes));
            codes = copy;
            stride = BYTES;
        }
        row_dots<BITS>(codes, stride, &x.codes[at], BITS == 4 ? &x.odd[at] : nullptr, &out[b].rows[row % LANES]);
    }
}

// `room`: as `dot_rows` needs it.
template <int BITS>
void panel_times_row(const Weight& w, int64_t panel, const Activations& x, Span& span, Dots* room, float* y) {
    for (int64_t row = panel * LANES; row < std::min((panel + 1) * LANES, w.n); row += 4) {
        prefetch(w.scales + row * w.groups(), 4 * 2 * w.groups());
        prefetch(w.zeros + row * w.width(w.groups()), 4 * w.width(w.groups()));
        dot_rows<BITS>(w, row, x, room);
    }
    Floats sums[1] = {fill(0.0f)};
    const uint8_t* next = w.codes + (panel + 1) * LANES * w.width(w.k);
    for (int64_t first = 0; first < w.blocks(); first += SPAN) {
        int64_t count = std::min(SPAN, w.blocks() - first);
        unpack_groups<BITS>(w, panel, first, count, span);
        for (int64_t b = 0; b < count; b++, next += MEANWHILE) {
            prefetch(next, MEANWHILE);  // memory has nothing else to do
            Words dot[1] = {load_words((const uint8_t*)room[first + b].rows)};
            add_block<1>(span, b, dot, &x.sums[first + b], sums);
        }
    }
    store_floats(y, sums[0]);
}

// Multiplies panels of a weight, one after the other, in a thread of its own.
class Multiplier {
public:
    // y (rows, LANES) = a panel times the tiles of activations, still without the activations' scales.
    const float* multiply(const Weight& w, int64_t panel, Tiles x) {
        if (w.bits == 8) return multiply<8>(w, panel, x);
        if (w.bits == 4) return multiply<4>(w, panel, x);
        return multiply<4>(w.bits == 3 ? widened<3>(w, panel) : widened<2>(w, panel), 0, x);
    }

private:
    // A panel of a weight of 2 or 3 bits, as a weight of 4 bits.
    template <int BITS>
    Weight widened(const Weight& w, int64_t panel) {
        int64_t first = panel * LANES, rows = std::min(LANES, w.n - first);
        widen_codes<BITS>(w.codes + first * w.width(w.k), rows, w.k, codes_);
        widen_codes<BITS>(w.zeros + first * w.width(w.groups()), rows, w.groups(), zeros_);
        return {codes_.data(), w.scales + first * w.groups(), zeros_.data(), 4, w.group, rows, w.k};
    }

    template <int BITS>
    const float* multiply(const Weight& w, int64_t panel, Tiles x) {
        int64_t rows = x.rows();
        y_.assign(rows * LANES, 0.0f);
        if (rows > 1) {
            panel_times_tiles<BITS>(w, panel, x, span_, y_.data());
        } else {
            room_.resize(w.blocks() + 3);
            panel_times_row<BITS>(w, panel, *x.first, span_, room_.data(), y_.data());
        }
        return y_.data();
    }

    Span span_;
    std::vector<float> y_;
    std::vector<Dots> room_;
    std::vector<uint8_t> codes_, zeros_;
};

}  // namespace
