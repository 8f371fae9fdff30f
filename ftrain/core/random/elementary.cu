/* Arithmetic of the samplers on CUDA: exponentials, the error function, neighbours of floats, draws of one element.
 *
 * Each function repeats the tensor operations of _elementary.py, operation by operation. Follows threefry.cu.
 */

static inline double nan64(void) {
    const u64 word = 0x7FF8000000000000u;
    double x;
    memcpy(&x, &word, sizeof x);
    return x;
}

/* Element `at` of a parameter, of all rows. A step of 0: one number in memory. No memory: the step is the number's word. */
template <typename T> static inline T parameter(const void *data, i64 step, u64 at) {
    T value;
    if (data) return ((const T *)data)[(i64)at * step];
    memcpy(&value, &step, sizeof value); /* the lower bytes */
    return value;
}
template <typename T> static inline T first_of(const struct task *t, u64 at) {
    return parameter<T>(t->data, t->data_row, at);
}
template <typename T> static inline T second_of(const struct task *t, u64 at) {
    return parameter<T>(t->other, t->other_row, at);
}

static const double SERIES_EXP[] = {
    1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0,
    1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 1.0 / 2.0, 1.0, 1.0};
static const double ERF_T[] = {9.60497373987051638749, 90.0260197203842689217, 2232.00534594684319226,
    7003.32514112805075473, 55592.3013010394962768};
static const double ERF_U[] = {1.0, 33.5617141647503099647, 521.357949780152679795, 4594.32382970980127987,
    22629.0000613890934246, 49267.3942608635921086};
static const double ERF_P[] = {2.46196981473530512524e-10, 0.564189564831068821977, 7.46321056442269912687,
    48.6371970985681366614, 196.520832956077098242, 526.445194995477358631, 934.528527171957607540,
    1027.55188689515710272, 557.535335369399327526};
static const double ERF_Q[] = {1.0, 13.2281951154744992508, 86.7072140885989742329, 354.937778887819891062,
    975.708501743205489753, 1823.90916687909736289, 2246.33760818710981792, 1656.66309194161350182,
    557.535340817727675546};

/* See _elementary.py. */
static inline double exp64(double x) {
    double value;
    if (x != x) return x;
    const double c = x < -708.0 ? -708.0 : x > 709.7 ? 709.7 : x;
    const double k = rint(c * 1.4426950408889634), half = floor(k / 2.0);
    const double r = (c - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    const u64 words[2] = {(u64)((i64)half + 1023) << 52, (u64)((i64)(k - half) + 1023) << 52};
    double powers[2];
    memcpy(&powers[0], &words[0], sizeof words[0]);
    memcpy(&powers[1], &words[1], sizeof words[1]);
    HORNER(SERIES_EXP, r, value)
    value = value * powers[0] * powers[1];
    return x < -708.0 ? 0.0 : x > 709.7 ? (double)infinity32() : value;
}

static inline double power64(double x, double exponent) { return exp64(full_log(x) * exponent); }

/* A number of 16 bits, exactly. */
static inline float half_value(u16 word) {
    const u32 sign = (u32)(word & 0x8000u) << 16, rest = word & 0x7FFFu;
    u32 bits = sign | ((rest << 13) + (rest >= 0x7C00u ? 0x70000000u : 0x38000000u));
    float x;
    memcpy(&x, &bits, sizeof x);
    return rest >= 0x0400u ? x : (sign ? -1.0f : 1.0f) * ((float)rest * 5.9604644775390625e-08f);
}

static inline float brain_value(u16 word) {
    const u32 bits = (u32)word << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The lower bytes of a word, as element `at` of the result. */
static inline void store(const struct task *t, u64 at, u64 value) {
    switch (t->size) {
    case 1: ((u8 *)t->out)[at] = (u8)value; break;
    case 2: ((u16 *)t->out)[at] = (u16)value; break;
    case 4: ((u32 *)t->out)[at] = (u32)value; break;
    default: ((u64 *)t->out)[at] = value;
    }
}

static inline double erf64(double x) {
    const double absolute = x < 0 ? -x : x, size = absolute > 6.0 ? 6.0 : absolute, square = size * size;
    double t, u, p, q;
    HORNER(ERF_T, square, t)
    HORNER(ERF_U, square, u)
    HORNER(ERF_P, size, p)
    HORNER(ERF_Q, size, q)
    const double value = size < 1.0 ? size * t / u : 1.0 - exp64(-square) * p / q;
    return x < 0 ? -value : value;
}

static inline float erfinv(float u) { return erfinv32(u); }
static inline double erfinv(double u) { return erfinv64(u); }
static inline float root(float x) { return sqrtf(x); }
static inline double root(double x) { return sqrt(x); }
static inline float scaled(float unit, float low, float span) { return scaled32(unit, low, span); }
static inline double scaled(double unit, double low, double span) { return scaled64(unit, low, span); }

/* The neighbour of x towards plus or minus infinity. */
static inline float neighbour(float x, bool up) {
    const float towards = up ? infinity32() : -infinity32();
    i32 word;
    if (x != x || x == towards) return x;
    memcpy(&word, &x, sizeof word);
    word = x == 0.0f ? (i32)(up ? 1u : 0x80000001u) : word + ((x > 0.0f) == up ? 1 : -1);
    memcpy(&x, &word, sizeof word);
    return x;
}

static inline double neighbour(double x, bool up) {
    const double towards = up ? (double)infinity32() : -(double)infinity32();
    i64 word;
    if (x != x || x == towards) return x;
    memcpy(&word, &x, sizeof word);
    word = x == 0.0 ? (i64)(up ? 1u : 0x8000000000000001u) : word + ((x > 0.0) == up ? 1 : -1);
    memcpy(&x, &word, sizeof word);
    return x;
}

/* A uniform of element i under a key, and that under the key with `data` folded in first. */
static inline void unit(const u32 key[2], u64 i, float *out) {
    const u32 k0 = key[0], k1 = key[1], k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    u32 x = (u32)(i >> 32), y = (u32)i;
    THREEFRY(k0, k1, k2, x, y)
    *out = unit32(x ^ y);
}

static inline void unit(const u32 key[2], u64 i, double *out) {
    const u32 k0 = key[0], k1 = key[1], k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    u32 x = (u32)(i >> 32), y = (u32)i;
    THREEFRY(k0, k1, k2, x, y)
    *out = unit64(x, y);
}

template <typename T> static inline T unit_at(const u32 key[2], u32 data, u64 i) {
    u32 own[2] = {key[0], key[1]};
    T u;
    fold(own, 0, data);
    unit(own, i, &u);
    return u;
}

static inline float normal_of(float unit) { return normal32(unit); }
static inline double normal_of(double unit) { return normal64(unit); }
