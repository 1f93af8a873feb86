// Sixteen lanes in four registers: ARM with NEON's dot products, with or without i8mm. See lanes.h.

#pragma once

constexpr int TILE = 4;

struct Words { uint32x4_t v[4]; };
struct Floats { float32x4_t v[4]; };

// The same on all four registers.
template <typename To, typename F>
To all(F f) { return {{f(0), f(1), f(2), f(3)}}; }

inline Words load_words(const uint8_t* from) {
    return all<Words>([&](int i) { return vreinterpretq_u32_u8(vld1q_u8(from + 16 * i)); });
}
inline void store_words(uint8_t* to, Words a) {
    for (int i = 0; i < 4; i++) vst1q_u8(to + 16 * i, vreinterpretq_u8_u32(a.v[i]));
}
inline Words low_nibbles(Words a) {
    return all<Words>([&](int i) { return vandq_u32(a.v[i], vdupq_n_u32(0x0f0f0f0f)); });
}
inline Words high_nibbles(Words a) {
    return all<Words>([&](int i) { return vandq_u32(vshrq_n_u32(a.v[i], 4), vdupq_n_u32(0x0f0f0f0f)); });
}

inline Floats load_floats(const float* from) { return all<Floats>([&](int i) { return vld1q_f32(from + 4 * i); }); }
inline void store_floats(float* to, Floats a) {
    for (int i = 0; i < 4; i++) vst1q_f32(to + 4 * i, a.v[i]);
}
inline Floats fill(float a) { return all<Floats>([&](int) { return vdupq_n_f32(a); }); }
inline Floats fma(Floats a, Floats b, Floats c) {
    return all<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Floats fnma(Floats a, Floats b, Floats c) {
    return all<Floats>([&](int i) { return vfmsq_f32(c.v[i], a.v[i], b.v[i]); });
}

inline Floats low_bf16(Words a) {
    return all<Floats>([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(a.v[i], 16)); });
}
inline Floats high_bf16(Words a) {
    return all<Floats>([&](int i) { return vreinterpretq_f32_u32(vandq_u32(a.v[i], vdupq_n_u32(0xffff0000))); });
}
template <int BITS>
Floats field(Words a, int index) {
    const int32x4_t shift = vdupq_n_s32(-index * BITS);  // to the right
    const uint32x4_t mask = vdupq_n_u32((1 << BITS) - 1);
    return all<Floats>([&](int i) { return vcvtq_f32_u32(vandq_u32(vshlq_u32(a.v[i], shift), mask)); });
}
inline Floats to_floats(Words a) {
    return all<Floats>([&](int i) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a.v[i])); });
}

inline void transpose(const uint8_t* at, int64_t stride, Words (&out)[4]) {
    for (int i = 0; i < 4; i++) {
        auto row = [&](int r) { return vreinterpretq_u32_u8(vld1q_u8(at + (4 * i + r) * stride)); };
        uint32x4x2_t ab = vtrnq_u32(row(0), row(1)), cd = vtrnq_u32(row(2), row(3));
        out[0].v[i] = vcombine_u32(vget_low_u32(ab.val[0]), vget_low_u32(cd.val[0]));
        out[1].v[i] = vcombine_u32(vget_low_u32(ab.val[1]), vget_low_u32(cd.val[1]));
        out[2].v[i] = vcombine_u32(vget_high_u32(ab.val[0]), vget_high_u32(cd.val[0]));
        out[3].v[i] = vcombine_u32(vget_high_u32(ab.val[1]), vget_high_u32(cd.val[1]));
    }
}

#ifdef __ARM_FEATURE_MATMUL_INT8

struct Sums { int32x4_t v; };
inline Sums no_sums() { return {vdupq_n_s32(0)}; }
template <int BITS>
int32x4_t total(Sums sums) { return sums.v; }
template <int BITS>
void add_dots(Sums& sums, uint8x16_t codes, int8x16_t x) { sums.v = vusdotq_s32(sums.v, codes, x); }

#else

// The instruction multiplies signed bytes, so codes of 8 bits are multiplied as two halves.
struct Sums { int32x4_t low, high; };
inline Sums no_sums() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
template <int BITS>
int32x4_t total(Sums sums) { return BITS == 4 ? sums.low : vaddq_s32(sums.low, vshlq_n_s32(sums.high, 4)); }
template <int BITS>
void add_dots(Sums& sums, uint8x16_t codes, int8x16_t x) {
    uint8x16_t low = BITS == 4 ? codes : vandq_u8(codes, vdupq_n_u8(15));
    sums.low = vdotq_s32(sums.low, vreinterpretq_s8_u8(low), x);
    if (BITS == 8) sums.high = vdotq_s32(sums.high, vreinterpretq_s8_u8(vshrq_n_u8(codes, 4)), x);
}

#endif

// Activations of the quad of columns, of all rows.
template <int ROWS>
const int32_t* of_quad(int quad, const int8_t* x, const int8_t* more) {
    return (const int32_t*)(quad < 4 ? x : more) + quad % 4 * ROWS;
}

template <int BITS, int ROWS>
void dots_by_row(const uint8_t* codes, const int8_t* x, const int8_t* more, Words (&out)[ROWS]) {
    Sums sums[ROWS][4];
    for (int m = 0; m < ROWS; m++)
        for (Sums& sum : sums[m]) sum = no_sums();
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++)
        for (int m = 0; m < ROWS; m++) {
            int8x16_t four = vreinterpretq_s8_s32(vld1q_dup_s32(of_quad<ROWS>(quad, x, more) + m));
            for (int i = 0; i < 4; i++) add_dots<BITS>(sums[m][i], vld1q_u8(codes + quad * 64 + 16 * i), four);
        }
    for (int m = 0; m < ROWS; m++)
        out[m] = all<Words>([&](int i) { return vreinterpretq_u32_s32(total<BITS>(sums[m][i])); });
}

#ifdef __ARM_FEATURE_MATMUL_INT8

// Two rows of activations at once: an instruction multiplies two lanes by two rows, of two quads of columns.
template <int ROWS>
void dots_by_pair(const uint8_t* codes, const int8_t* x, const int8_t* more, Words (&out)[ROWS]) {
    int32x4_t sums[ROWS / 2][8];
    for (int p = 0; p < ROWS / 2; p++)
        for (int32x4_t& sum : sums[p]) sum = vdupq_n_s32(0);
#pragma GCC unroll 4
    for (int quad = 0; quad < 8; quad += 2) {
        int8x16_t eight[ROWS / 2];
        for (int p = 0; p < ROWS / 2; p++) {
            int32x2_t first = vld1_s32(of_quad<ROWS>(quad, x, more) + 2 * p);
            int32x2_t second = vld1_s32(of_quad<ROWS>(quad + 1, x, more) + 2 * p);
            eight[p] = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(first, second), vzip2_s32(first, second)));
        }
        Words a = load_words(codes + quad * 64), b = load_words(codes + quad * 64 + 64);
        for (int i = 0; i < 4; i++) {
            uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(a.v[i], b.v[i]));
            uint8x16_t high = vreinterpretq_u8_u32(vzip2q_u32(a.v[i], b.v[i]));
            for (int p = 0; p < ROWS / 2; p++) {
                sums[p][2 * i] = vusmmlaq_s32(sums[p][2 * i], low, eight[p]);
                sums[p][2 * i + 1] = vusmmlaq_s32(sums[p][2 * i + 1], high, eight[p]);
            }
        }
    }
    for (int p = 0; p < ROWS / 2; p++)
        for (int i = 0; i < 4; i++) {
            out[2 * p].v[i] = vreinterpretq_u32_s32(vuzp1q_s32(sums[p][2 * i], sums[p][2 * i + 1]));
            out[2 * p + 1].v[i] = vreinterpretq_u32_s32(vuzp2q_s32(sums[p][2 * i], sums[p][2 * i + 1]));
        }
}

template <int BITS, int ROWS>
void dots(const uint8_t* codes, const int8_t* x, const int8_t* more, Words (&out)[ROWS]) {
    if constexpr (ROWS % 2 == 0) dots_by_pair<ROWS>(codes, x, more, out);
    else dots_by_row<BITS, ROWS>(codes, x, more, out);
}

#else

template <int BITS, int ROWS>
void dots(const uint8_t* codes, const int8_t* x, const int8_t* more, Words (&out)[ROWS]) {
    dots_by_row<BITS, ROWS>(codes, x, more, out);
}

#endif

template <int BITS>
void row_dots(const uint8_t* codes, int64_t stride, const int8_t* x, const int8_t* more, int32_t* sums) {
    // 16 bytes are a block, or half of one: four words, whose sum is wanted.
    auto part = [&](int r, int i) {
        uint8x16_t w = vld1q_u8(codes + r * stride + 16 * i);
        Sums found = no_sums();
        add_dots<BITS>(found, BITS == 4 ? vandq_u8(w, vdupq_n_u8(15)) : w, vld1q_s8(x + 16 * i));
        if (BITS == 4) add_dots<BITS>(found, vshrq_n_u8(w, 4), vld1q_s8(more + 16 * i));
        return total<BITS>(found);
    };
    for (int b = 0; b < 4; b++) {
        auto row = [&](int r) { return BITS == 4 ? part(r, b) : vaddq_s32(part(r, 2 * b), part(r, 2 * b + 1)); };
        vst1q_s32(sums + b * LANES, vpaddq_s32(vpaddq_s32(row(0), row(1)), vpaddq_s32(row(2), row(3))));
    }
}
