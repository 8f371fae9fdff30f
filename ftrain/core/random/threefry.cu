/* Threefry-2x32 on CUDA: one kernel for each draw, made of the functions of threefry.h, which precedes this file.
 *
 * A thread folds integers into the key of one row and draws every `per_row`-th element of that row, so neighbours write
 * neighbouring elements. Also valid C++ for a CPU that defines the words of CUDA: the tests run it there.
 */

enum { FOLDS = 32 };
/* After `enum kind`: the floats of 16 bits (B: bfloat16), integers, keys, and functions of uniforms. */
enum more {
    UNIFORM16 = 10, UNIFORMB16, NORMAL16, NORMALB16, INTEGERS32, INTEGERS64, FOLD,
    EXPONENTIAL32, EXPONENTIAL64, EXPONENTIAL16, EXPONENTIALB16,
    LAPLACE32, LAPLACE64, LAPLACE16, LAPLACEB16,
    GUMBEL32, GUMBEL64, GUMBEL16, GUMBELB16,
    GUMBELHIGH32, GUMBELHIGH64, GUMBELHIGH16, GUMBELHIGHB16
};

/* The parameters of a launch, in the order in which _cuda_kernel.py packs them; strides count elements. */
struct task {
    const u32 *keys;
    i64 key_row, key_word;
    const void *data;
    i64 data_row, data_size; /* bytes of an integer; negative: it has a sign */
    void *out;
    u64 rows, count, per_row;
    u64 base, span;
    i64 size; /* bytes of a result */
    double a, b;
    const void *other; /* of samplers.cu: the second parameter, and memory to compute in */
    i64 other_row;
    void *work;
    u64 inner;
    u32 folded, folds[FOLDS];
};

static inline void load(const struct task *t, u64 row, u32 key[2]) {
    const u32 *from = t->keys + (i64)row * t->key_row;
    key[0] = from[0];
    key[1] = from[t->key_word];
    for (u32 i = 0; i < t->folded; i++) fold(key, 0, t->folds[i]);
}

/* The row of a thread and its first element of that row; false if there is none. */
static inline bool place(const struct task *t, u64 thread, u64 *row, u64 *first) {
    *row = t->rows > 1 ? thread / t->per_row : 0;
    *first = thread - *row * t->per_row;
    return *row < t->rows && *first < t->per_row;
}

/* float16: rounded to nearest, ties to even. Adding a power of two drops the bits that do not fit. */
static inline float half(float x) {
    u32 word, power;
    float magnitude, drop;
    memcpy(&word, &x, sizeof word);
    const u32 sign = word & 0x80000000u;
    word &= 0x7FFFFFFFu;
    if (word > 0x7F800000u) return x;
    power = word & 0x7F800000u;
    power = (power < 0x38800000u ? 0x38800000u : power) + (13u << 23); /* 23 bits become 10; fewer below 2^-14 */
    memcpy(&drop, &power, sizeof power);
    memcpy(&magnitude, &word, sizeof word);
    if (word < 0x47800000u) magnitude = (magnitude + drop) - drop;
    memcpy(&word, &magnitude, sizeof word);
    word = (word >= 0x47800000u ? 0x7F800000u : word) | sign; /* infinite from 2^16 */
    memcpy(&x, &word, sizeof word);
    return x;
}

/* The word of a float16 that `half` has rounded. */
static inline u16 half_word(float x) {
    u32 word;
    float magnitude;
    memcpy(&word, &x, sizeof word);
    const u32 sign = (word >> 16) & 0x8000u, rest = word & 0x7FFFFFFFu;
    if (rest > 0x7F800000u) return 0x7E00u;
    if (rest == 0x7F800000u) return (u16)(sign | 0x7C00u);
    memcpy(&magnitude, &rest, sizeof rest);
    if (rest < 0x38800000u) return (u16)(sign | (u32)(magnitude * 16777216.0f)); /* in units of 2^-24 */
    return (u16)(sign | ((rest - 0x38000000u) >> 13));
}

/* bfloat16: the upper half of the word of a float, rounded to nearest, ties to even. */
static inline u16 brain_word(float x) {
    u32 word;
    memcpy(&word, &x, sizeof word);
    if ((word & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0u;
    return (u16)((word + 0x7FFFu + ((word >> 16) & 1u)) >> 16);
}

static inline float brain(float x) {
    const u32 word = (u32)brain_word(x) << 16;
    memcpy(&x, &word, sizeof word);
    return x;
}

/* The formulas of _floats.py and _normal.py in 16 bits, where every operation rounds. */
#define UNIFORM(round, unit, a, b, value)                            \
    const float low = round((float)(a)) + 0.0f;                      \
    const float span = round(round((float)(b)) - low);               \
    float value = round(round((unit) * span) + low);                 \
    value = value < low ? low : value;

#define NORMAL(round, unit, lowest, value)                           \
    float u = round((unit) * 2.0f + (lowest));                       \
    u = u < (lowest) ? (lowest) : u;                                 \
    const float value = round(1.4140625f * round(erfinv32(u)));

static inline float infinity32(void) {
    const u32 word = 0x7F800000u;
    float x;
    memcpy(&x, &word, sizeof word);
    return x;
}

/* log(x) for x >= 0 and log(1 + x) for -1 <= x <= 0: see `log` and `log1p` in _elementary.py. */
static inline float full_log(float x) {
    const float least = 1.17549435082228750797e-38f;
    return !(x < infinity32()) ? x : x > 0.0f ? log32(x < least ? least : x) : -infinity32();
}

static inline double full_log(double x) {
    const double least = 2.22507385850720138309e-308;
    return !(x < (double)infinity32()) ? x : x > 0.0 ? log64(x < least ? least : x) : -(double)infinity32();
}

static inline float full_log1p(float x) {
    const float lowest = 5.9604644775390625e-08f - 1.0f;
    return x > -1.0f ? log1p32(x < lowest ? lowest : x) : -infinity32();
}

static inline double full_log1p(double x) {
    const double lowest = 1.1102230246251565e-16 - 1.0;
    return x > -1.0 ? log1p64(x < lowest ? lowest : x) : -(double)infinity32();
}

/* The formulas of _jax_families.py, where `round` follows each operation in 16 bits. */
template <typename T> static inline T exponential(T u) { return -full_log1p(-u); }

template <typename T> static inline T laplace(T u) {
    return (T)((u > 0) - (u < 0)) * full_log1p(u < 0 ? u : -u);
}

#define GUMBEL(round, u) (-full_log(round(-full_log(u))))

#define GUMBEL_HIGH(round, high, low, step, tiny, value)                              \
    const auto high_ = (high);                                                        \
    const auto u_ = high_ >= 0.5f ? high_ : round(round(high_ + round((step) * (low))) + (tiny)); \
    const auto value = -full_log(round(-full_log1p(-u_)));

static inline float exact(float x) { return x; }
static inline double exact(double x) { return x; }

/* The numbers in [0, 1) of 16 bits. */
static inline float unit16(u32 word) { return (float)((word & 0xFFFFu) >> 6) * 0.0009765625f; }
static inline float unitb16(u32 word) { return (float)((word & 0xFFu) >> 1) * 0.0078125f; }

/* Element i of a row, which is element `at` of the result. `kind` is a constant of each kernel. */
static inline void element(const int kind, const u32 key[2], u64 i, u64 at, const struct task *t) {
    const u32 k0 = key[0], k1 = key[1], k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    u32 x = (u32)(i >> 32), y = (u32)i;
    THREEFRY(k0, k1, k2, x, y)
    const u32 word = x ^ y;
    switch (kind) {
    case BITS8: ((u8 *)t->out)[at] = (u8)word; break;
    case BITS16: ((u16 *)t->out)[at] = (u16)word; break;
    case BITS32: ((u32 *)t->out)[at] = word; break;
    case BITS64: ((u64 *)t->out)[at] = ((u64)x << 32) | y; break;
    case PAIRS:
        ((u32 *)t->out)[2 * at] = x;
        ((u32 *)t->out)[2 * at + 1] = y;
        break;
    case BELOW: ((u8 *)t->out)[at] = (word >> 9) < (u32)t->a; break;
    case UNIFORM32: {
        const float low = (float)t->a, span = (float)t->b - low, unit = unit32(word);
        ((float *)t->out)[at] = low == 0.0f && span == 1.0f ? unit : scaled32(unit, low, span);
        break;
    }
    case UNIFORM64: ((double *)t->out)[at] = scaled64(unit64(x, y), t->a, t->b - t->a); break;
    case NORMAL32: ((float *)t->out)[at] = normal32(unit32(word)); break;
    case NORMAL64: ((double *)t->out)[at] = normal64(unit64(x, y)); break;
    case UNIFORM16: {
        UNIFORM(half, unit16(word), t->a, t->b, value)
        ((u16 *)t->out)[at] = half_word(value);
        break;
    }
    case UNIFORMB16: {
        UNIFORM(brain, unitb16(word), t->a, t->b, value)
        ((u16 *)t->out)[at] = brain_word(value);
        break;
    }
    case NORMAL16: {
        NORMAL(half, unit16(word), 0.00048828125f - 1.0f, value)
        ((u16 *)t->out)[at] = half_word(value);
        break;
    }
    case NORMALB16: {
        NORMAL(brain, unitb16(word), 0.00390625f - 1.0f, value)
        ((u16 *)t->out)[at] = brain_word(value);
        break;
    }
    case EXPONENTIAL32: ((float *)t->out)[at] = exponential(unit32(word)); break;
    case EXPONENTIAL64: ((double *)t->out)[at] = exponential(unit64(x, y)); break;
    case EXPONENTIAL16: ((u16 *)t->out)[at] = half_word(half(exponential(unit16(word)))); break;
    case EXPONENTIALB16: ((u16 *)t->out)[at] = brain_word(exponential(unitb16(word))); break;
    case LAPLACE32:
    case GUMBEL32: {
        const float low = (float)t->a, u = scaled32(unit32(word), low, (float)t->b - low);
        ((float *)t->out)[at] = kind == LAPLACE32 ? laplace(u) : GUMBEL(exact, u);
        break;
    }
    case LAPLACE64:
    case GUMBEL64: {
        const double u = scaled64(unit64(x, y), t->a, t->b - t->a);
        ((double *)t->out)[at] = kind == LAPLACE64 ? laplace(u) : GUMBEL(exact, u);
        break;
    }
    case LAPLACE16:
    case GUMBEL16: {
        UNIFORM(half, unit16(word), t->a, t->b, u)
        ((u16 *)t->out)[at] = half_word(half(kind == LAPLACE16 ? laplace(u) : GUMBEL(half, u)));
        break;
    }
    case LAPLACEB16:
    case GUMBELB16: {
        UNIFORM(brain, unitb16(word), t->a, t->b, u)
        ((u16 *)t->out)[at] = brain_word(kind == LAPLACEB16 ? laplace(u) : GUMBEL(brain, u));
        break;
    }
    case GUMBELHIGH32:
    case GUMBELHIGH64:
    case GUMBELHIGH16:
    case GUMBELHIGHB16: { /* from element i and the one at the same place in a second row of `count` */
        const u64 j = i + t->count;
        u32 z = (u32)(j >> 32), w = (u32)j;
        THREEFRY(k0, k1, k2, z, w)
        const u32 other = z ^ w;
        const float step = (float)t->a, tiny = (float)t->b;
        if (kind == GUMBELHIGH64) {
            GUMBEL_HIGH(exact, unit64(x, y), unit64(z, w), t->a, t->b, value)
            ((double *)t->out)[at] = value;
        } else if (kind == GUMBELHIGH32) {
            GUMBEL_HIGH(exact, unit32(word), unit32(other), step, tiny, value)
            ((float *)t->out)[at] = value;
        } else if (kind == GUMBELHIGH16) {
            GUMBEL_HIGH(half, unit16(word), unit16(other), step, tiny, value)
            ((u16 *)t->out)[at] = half_word(half(value));
        } else {
            GUMBEL_HIGH(brain, unitb16(word), unitb16(other), step, tiny, value)
            ((u16 *)t->out)[at] = brain_word(value);
        }
        break;
    }
    }
}

static inline void draw(const int kind, const struct task *t, u64 thread) {
    u64 row, i;
    u32 key[2];
    if (!place(t, thread, &row, &i)) return;
    load(t, row, key);
    _Pragma("unroll 1") for (; i < t->count; i += t->per_row) element(kind, key, i, row * t->count + i, t);
}

/* base + (two words of 32 or 64 bits) mod span. */
static inline void integers(const bool wide, const struct task *t, u64 thread) {
    u64 row, i;
    u32 upper[2], lower[2];
    if (!place(t, thread, &row, &i)) return;
    load(t, row, upper);
    lower[0] = upper[0];
    lower[1] = upper[1];
    fold(upper, 0, 0); /* split(key)[i] is fold_in(key, i) */
    fold(lower, 0, 1);
    const u32 u2 = upper[0] ^ upper[1] ^ 0x1BD11BDAu, l2 = lower[0] ^ lower[1] ^ 0x1BD11BDAu;
    const u64 span = t->span, factor = wide ? factor64(span) : factor32((u32)span);
    const u64 reciprocal = !span ? 0 : wide ? ~(u64)0 / span : ~(u32)0 / (u32)span;
    _Pragma("unroll 1") for (; i < t->count; i += t->per_row) {
        u32 x = (u32)(i >> 32), y = (u32)i, z = x, w = y;
        THREEFRY(upper[0], upper[1], u2, x, y)
        THREEFRY(lower[0], lower[1], l2, z, w)
        const u64 at = row * t->count + i;
        if (wide) {
            const u64 a = ((u64)x << 32) | y, b = ((u64)z << 32) | w;
            ((u64 *)t->out)[at] = t->base + offset64(a, b, span, factor, reciprocal);
            continue;
        }
        const u32 value = (u32)t->base + offset32(x ^ y, z ^ w, (u32)span, (u32)factor, (u32)reciprocal);
        switch (t->size) {
        case 1: ((u8 *)t->out)[at] = (u8)value; break;
        case 2: ((u16 *)t->out)[at] = (u16)value; break;
        default: ((u32 *)t->out)[at] = value;
        }
    }
}

/* The lower 32 bits of an integer of the given size, extended by its sign if it has one. */
static inline u32 low_word(const struct task *t, u64 row) {
    const i64 i = (i64)row * t->data_row;
    switch (t->data_size) {
    case 1: return ((const u8 *)t->data)[i];
    case -1: return (u32)(i32)((const i8 *)t->data)[i];
    case 2: return ((const u16 *)t->data)[i];
    case -2: return (u32)(i32)((const i16 *)t->data)[i];
    case 4:
    case -4: return ((const u32 *)t->data)[i];
    default: return (u32)((const u64 *)t->data)[i];
    }
}

/* out[row] = keys[row] with each of folds, then data[row] (if given) folded in. */
static inline void fold_in(const struct task *t, u64 row) {
    u32 key[2];
    if (row >= t->rows) return;
    load(t, row, key);
    if (t->data) fold(key, 0, low_word(t, row));
    ((u32 *)t->out)[2 * row] = key[0];
    ((u32 *)t->out)[2 * row + 1] = key[1];
}

/* Compiled once for each KIND that is drawn. */
extern "C" __global__ void ftrain_kernel(const __grid_constant__ struct task t) {
    const u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (KIND == FOLD)
        fold_in(&t, thread);
    else if (KIND == INTEGERS32 || KIND == INTEGERS64)
        integers(KIND == INTEGERS64, &t, thread);
    else
        draw(KIND, &t, thread);
}
