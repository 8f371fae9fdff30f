/* Threefry-2x32 on a CPU: loops over the functions of threefry.h that compilers vectorise (also valid C++). */
#include "threefry.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BLOCK = 512 };              /* two arrays of words: 4 KiB, well inside the first cache */
enum { GRAIN = 16384 };            /* fewest elements worth a thread */

/* The words of counters start .. start + n - 1; start is a multiple of BLOCK, n at most BLOCK. */
static void words(const u32 key[2], u64 start, int n, u32 *__restrict__ first, u32 *__restrict__ second) {
    const u32 k0 = key[0], k1 = key[1], k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    const u32 high = (u32)(start >> 32), low = (u32)start;
    for (int i = 0; i < n; i++) {
        u32 a = high, b = low + (u32)i;
        THREEFRY(k0, k1, k2, a, b)
        first[i] = a;
        second[i] = b;
    }
}

static void xored(const u32 key[2], u64 start, int n, u32 *__restrict__ out) {
    const u32 k0 = key[0], k1 = key[1], k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    const u32 high = (u32)(start >> 32), low = (u32)start;
    for (int i = 0; i < n; i++) {
        u32 a = high, b = low + (u32)i;
        THREEFRY(k0, k1, k2, a, b)
        out[i] = a ^ b;
    }
}

/* Elements start .. start + count - 1 of one row (count <= BLOCK) into out. */
static void block(int kind, const u32 key[2], u64 start, int count, double a, double b, void *out) {
    u32 x[BLOCK], y[BLOCK];
    if (kind == BITS64 || kind == PAIRS || kind == UNIFORM64 || kind == NORMAL64)
        words(key, start, count, x, y);
    else
        xored(key, start, count, x);
    switch (kind) {
    case BITS8: {
        uint8_t *__restrict__ to = (uint8_t *)out;
        for (int i = 0; i < count; i++) to[i] = (uint8_t)x[i];
        break;
    }
    case BITS16: {
        uint16_t *__restrict__ to = (uint16_t *)out;
        for (int i = 0; i < count; i++) to[i] = (uint16_t)x[i];
        break;
    }
    case BITS32:
        memcpy(out, x, (size_t)count * sizeof(u32));
        break;
    case BITS64: {
        u64 *__restrict__ to = (u64 *)out;
        for (int i = 0; i < count; i++) to[i] = ((u64)x[i] << 32) | y[i];
        break;
    }
    case PAIRS: {
        u32 *__restrict__ to = (u32 *)out;
        for (int i = 0; i < count; i++) {
            to[2 * i] = x[i];
            to[2 * i + 1] = y[i];
        }
        break;
    }
    case BELOW: {
        const u32 threshold = (u32)a;
        uint8_t *__restrict__ to = (uint8_t *)out;
        for (int i = 0; i < count; i++) to[i] = (x[i] >> 9) < threshold;
        break;
    }
    case UNIFORM32: {
        const float low = (float)a, span = (float)b - low;
        float *__restrict__ to = (float *)out;
        if (low == 0.0f && span == 1.0f)
            for (int i = 0; i < count; i++) to[i] = unit32(x[i]);
        else
            for (int i = 0; i < count; i++) to[i] = scaled32(unit32(x[i]), low, span);
        break;
    }
    case UNIFORM64: {
        const double low = a, span = b - a;
        double *__restrict__ to = (double *)out;
        for (int i = 0; i < count; i++) to[i] = scaled64(unit64(x[i], y[i]), low, span);
        break;
    }
    case NORMAL32: {
        float *__restrict__ to = (float *)out;
        for (int i = 0; i < count; i++) to[i] = normal32(unit32(x[i]));
        break;
    }
    case NORMAL64: {
        double *__restrict__ to = (double *)out;
        for (int i = 0; i < count; i++) to[i] = normal64(unit64(x[i], y[i]));
        break;
    }
    }
}

static const int SIZE[] = {1, 2, 4, 8, 8, 1, 4, 8, 4, 8};

/* Blocks from .. to - 1 of the array; each row has ceil(count / BLOCK) of them. */
static void range(int kind, const u32 *keys, const u32 *folds, int64_t folded, int64_t count, double a,
                  double b, char *out, int64_t from, int64_t to) {
    const int64_t per_row = (count + BLOCK - 1) / BLOCK;
    int64_t row = -1;
    u32 key[2] = {0, 0};
    for (int64_t i = from; i < to; i++) {
        if (i / per_row != row) {
            row = i / per_row;
            key[0] = keys[2 * row];
            key[1] = keys[2 * row + 1];
            for (int64_t f = 0; f < folded; f++) fold(key, 0, folds[f]);
        }
        const int64_t start = (i - row * per_row) * BLOCK;
        const int64_t left = count - start;
        block(kind, key, (u64)start, left < BLOCK ? (int)left : BLOCK, a, b,
              out + (row * count + start) * SIZE[kind]);
    }
}

/* out[r] = the draw of `count` elements under keys[r] after folding in folds. */
void ftrain_draw(int kind, const u32 *keys, int64_t rows, const u32 *folds, int64_t folded, int64_t count,
                 double a, double b, void *out, int threads) {
    const int64_t blocks = rows * ((count + BLOCK - 1) / BLOCK);
    const int64_t most = rows * count / GRAIN;
    if (threads > most) threads = (int)most;
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int t = 0; t < threads; t++)
            range(kind, keys, folds, folded, count, a, b, (char *)out, blocks * t / threads,
                  blocks * (t + 1) / threads);
        return;
    }
#endif
    range(kind, keys, folds, folded, count, a, b, (char *)out, 0, blocks);
}

/* One block of base + (two words of 32 or 64 bits) mod span; a span of 0 stands for 2^32 or 2^64. */
static void integers(const u32 key[2], u64 start, int count, u64 base, u64 span, char *out, int size) {
    u32 upper[2] = {key[0], key[1]}, lower[2] = {key[0], key[1]};
    u32 x[BLOCK], y[BLOCK], z[BLOCK], w[BLOCK];
    u64 value[BLOCK];
    fold(upper, 0, 0); /* split(key)[i] is fold_in(key, i) */
    fold(lower, 0, 1);
    words(upper, start, count, x, y);
    words(lower, start, count, z, w);
    if (size == 8) {
        const u64 factor = factor64(span), r = span ? UINT64_MAX / span : 0;
        for (int i = 0; i < count; i++) {
            const u64 a = ((u64)x[i] << 32) | y[i], b = ((u64)z[i] << 32) | w[i];
            value[i] = base + offset64(a, b, span, factor, r);
        }
    } else {
        const u32 n = (u32)span, factor = factor32(n), r = n ? UINT32_MAX / n : 0;
        for (int i = 0; i < count; i++)
            value[i] = base + offset32(x[i] ^ y[i], z[i] ^ w[i], n, factor, r);
    }
    for (int i = 0; i < count; i++) {
        switch (size) {
        case 1: ((uint8_t *)out)[i] = (uint8_t)value[i]; break;
        case 2: ((uint16_t *)out)[i] = (uint16_t)value[i]; break;
        case 4: ((u32 *)out)[i] = (u32)value[i]; break;
        default: ((u64 *)out)[i] = value[i];
        }
    }
}

/* out[r] = `count` integers of `size` bytes under keys[r] after folding in folds. */
void ftrain_randint(const u32 *keys, int64_t rows, const u32 *folds, int64_t folded, int64_t count,
                    int64_t base, int64_t span, void *out, int size, int threads) {
    const int64_t per_row = (count + BLOCK - 1) / BLOCK;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t i = 0; i < rows * per_row; i++) {
        const int64_t row = i / per_row, start = (i - row * per_row) * BLOCK, left = count - start;
        u32 key[2] = {keys[2 * row], keys[2 * row + 1]};
        for (int64_t f = 0; f < folded; f++) fold(key, 0, folds[f]);
        integers(key, (u64)start, left < BLOCK ? (int)left : BLOCK, (u64)base, (u64)span,
                 (char *)out + (row * count + start) * size, size);
    }
}

/* out[i] = keys[i] with each of folds, then data[i] (if given) folded in. */
void ftrain_fold(const u32 *keys, int64_t rows, const u32 *folds, int64_t folded, const u32 *data,
                 u32 *out) {
    for (int64_t i = 0; i < rows; i++) {
        u32 key[2] = {keys[2 * i], keys[2 * i + 1]};
        for (int64_t f = 0; f < folded; f++) fold(key, 0, folds[f]);
        if (data) fold(key, 0, data[i]);
        out[2 * i] = key[0];
        out[2 * i + 1] = key[1];
    }
}

#ifdef __cplusplus
}
#endif
