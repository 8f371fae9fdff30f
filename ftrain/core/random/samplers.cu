/* Samplers on CUDA that take parameters: one kernel for each draw, made of the functions of threefry.h, threefry.cu,
 * elementary.cu and families.cu, which precede this file.
 *
 * Each function repeats the tensor operations of _jax_families.py and _jax_samplers.py, operation by operation, so that
 * the bits are those of a draw on a CPU. Also valid C++ for a CPU that defines the words of CUDA: the tests run it there,
 * with groups of one thread.
 */

/* After `enum more`; pairs of float32 and float64, in the order of _cuda_kernel.py. */
enum sampler {
    TRUNCATED32 = 33, TRUNCATED64, GAMMA32, GAMMA64, LOGGAMMA32, LOGGAMMA64, SHARE32, SHARE64, SOFTMAX32, SOFTMAX64,
    LOG32, LOG64, SUMS32, SUMS64, CHOICE32, CHOICE64, PRODUCT32, PRODUCT64, BALL32, BALL64, ROUNDS, POISSON,
    SIGN32, SIGN64, BETWEEN32, BETWEEN64, BETWEEN16, BETWEENB16, RANGE32, RANGE64,
    KEYEDGAMMA32, KEYEDGAMMA64, KEYEDLOGGAMMA32, KEYEDLOGGAMMA64, KEYEDPOISSON32, KEYEDPOISSON64, KEYEDBINOMIAL32,
    KEYEDBINOMIAL64, KEYEDVONMISES32, KEYEDVONMISES64
};
enum { MOST_ROUNDS = 1000 };

/* `truncated_normal`, _jax_families.py. */
template <typename T> static inline T truncated(T u01, T lower, T upper, T eps) {
    const T root2 = (T)1.41421356237309504880, inside = 1 - eps / 2;
    const T low = (T)erf64((double)(lower / root2)) + (T)0, high = (T)erf64((double)(upper / root2));
    const T u = scaled(u01, low, high - low), size = u < 0 ? -u : u;
    const T inner = u < -inside ? -inside : u > inside ? inside : u;
    const T least = neighbour(lower, true), most = neighbour(upper, false);
    T value = root2 * (size < 1 ? erfinv(inner) : u * (T)infinity32());
    value = value < least || least != least ? least : value;
    return value > most || most != most ? most : value;
}

/* `gamma`, _jax_samplers.py: a sample, or its logarithm. NaN where MOST_ROUNDS proposals are rejected. */
template <typename T> static inline T gamma_of(const u32 key[2], T alpha, bool in_logs) {
    const bool is_boosted = !(alpha >= 1);
    const T d = (is_boosted ? alpha + 1 : alpha) - (T)(1.0 / 3.0), c = (T)(1.0 / 3.0) / root(d);
    u32 own[2] = {key[0], key[1]};
    T cube = (T)nan64(), u, log_u;
    if (!(alpha >= 0 && alpha < (T)infinity32())) return cube;
    fold(own, 0, 0);
    _Pragma("unroll 1") for (int n = 0; n < MOST_ROUNDS; n++) {
        u32 inner[2] = {own[0], own[1]};
        T x, v;
        fold(inner, 0, 1);
        int m = 0;
        _Pragma("unroll 1") do {
            if (m) fold(inner, 0, 0);
            x = normal_of(unit_at<T>(inner, 1, 0));
            v = 1 + x * c;
        } while (v <= 0 && ++m < MOST_ROUNDS);
        const T square = x * x;
        v = v * v * v;
        u = unit_at<T>(own, 2, 0);
        const T bound = square * (T)0.5 + d * ((1 - v) + full_log(v));
        if (!(u >= 1 - (T)0.0331 * square * square && full_log(u) >= bound)) {
            cube = v;
            break;
        }
        fold(own, 0, 0);
    }
    u = unit_at<T>(key, 1, 0);
    if (in_logs) {
        log_u = full_log1p(-u);
        const T boost = is_boosted && log_u != 0 ? log_u * (1 / alpha) : 0;
        return (full_log(d) + full_log(cube)) + boost;
    }
    return d * cube * (is_boosted ? (T)power64((double)(1 - u), (double)(1 / alpha)) : 1);
}

/* The key of element i in an array of keys that is split from `key`. */
static inline void split_at(const u32 key[2], u64 i, u32 own[2]) {
    own[0] = key[0];
    own[1] = key[1];
    fold(own, (u32)(i >> 32), (u32)i);
}

/* Sums in pairs, as `total` of _elementary.py, or the largest number (NaN if there is one), into work[0]. */
static inline void reduced(double *work, u64 n, bool is_sum) {
    __syncthreads();
    while (n > 1) {
        const u64 half = n / 2;
        for (u64 i = threadIdx.x; i < half; i += blockDim.x) {
            const double a = work[i], b = work[i + half];
            work[i] = is_sum ? a + b : a != a ? a : b != b || b > a ? b : a;
        }
        __syncthreads();
        if (threadIdx.x == 0 && n % 2) work[half] = work[2 * half];
        __syncthreads();
        n = half + n % 2;
    }
}

/* A group of threads computes one row of n elements. */
template <typename T> static inline void softmax(const struct task *t, u64 row) {
    const T *x = (const T *)t->data + row * t->count;
    double *work = (double *)t->work + row * t->count;
    for (u64 i = threadIdx.x; i < t->count; i += blockDim.x) work[i] = (double)x[i];
    reduced(work, t->count, false);
    const double most = work[0];
    __syncthreads();
    for (u64 i = threadIdx.x; i < t->count; i += blockDim.x) work[i] = exp64((double)x[i] - most);
    reduced(work, t->count, true);
    for (u64 i = threadIdx.x; i < t->count; i += blockDim.x)
        ((T *)t->out)[row * t->count + i] = (T)(exp64((double)x[i] - most) / work[0]);
}

/* The first of two shares of their sum, from the logarithms: `softmax` of two numbers. */
static inline double share(double x, double y) {
    const double most = x != x ? x : y != y || y > x ? y : x, power = exp64(x - most);
    return power / (power + exp64(y - most));
}

/* Running sums, as `cumulative` of _elementary.py: `work` holds the sums of pairs, of pairs of these, and so on. */
template <typename T> static inline void running_sums(const struct task *t, u64 row) {
    const u64 n = t->count;
    T *out = (T *)t->out + row * n, *work = (T *)t->work + row * n, *level = out;
    u64 used = 0, depth = 0;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) out[i] = ((const T *)t->data)[row * n + i];
    __syncthreads();
    for (u64 size = n; size > 1; size /= 2, depth++) {
        for (u64 i = threadIdx.x; i < size / 2; i += blockDim.x) work[used + i] = level[2 * i] + level[2 * i + 1];
        __syncthreads();
        level = work + used;
        used += size / 2;
    }
    while (depth--) { /* each level holds n >> depth sums and follows the level below it */
        const u64 size = n >> depth;
        const T *above = work + (used -= size / 2);
        T *here = depth ? work + used - size : out;
        for (u64 i = threadIdx.x; i < size; i += blockDim.x)
            if (i % 2) here[i] = above[i / 2];
            else if (i) here[i] = above[i / 2 - 1] + here[i];
        __syncthreads();
    }
}

/* A point of the unit ball of `count` dimensions, in the norm of exponent b; a is 1 / b. See `_ball_kernel`. */
template <typename T> static inline void ball(const struct task *t, u64 point) {
    const u64 d = t->count, row = point / t->per_row, place = point % t->per_row;
    double *work = (double *)t->work + point * d;
    T *out = (T *)t->out + point * d, u;
    u32 key[2], powers[2], signs[2];
    load(t, row, key);
    powers[0] = signs[0] = key[0];
    powers[1] = signs[1] = key[1];
    fold(powers, 0, 0);
    signs[0] = powers[0];
    signs[1] = powers[1];
    fold(powers, 0, 0);
    fold(signs, 0, 1);
    fold(key, 0, 1);
    const bool in_logs = t->b > 5.0;
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) {
        u32 own[2];
        split_at(powers, place * d + i, own);
        out[i] = gamma_of<T>(own, (T)t->a, in_logs);
        work[i] = in_logs ? exp64((double)out[i]) : (double)out[i];
    }
    reduced(work, d, true);
    unit(key, place, &u);
    const double norm = (d ? work[0] : 0.0) + (double)exponential(u), log_norm = full_log(norm);
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) {
        const double x = (double)out[i];
        const T radius = (T)(in_logs ? exp64((x - log_norm) / t->b) : power64(x / norm, t->a));
        unit(signs, place * d + i, &u);
        out[i] = u < (T)0.5 ? radius : -radius;
    }
}

static const float LANCZOS[] = {676.52036812188510f, -1259.1392167224029f, 771.32342877765308f, -176.61502916214059f,
    12.507343278686905f, -0.13857109526572012f, 9.9843695780195716e-06f, 1.5056327351493116e-07f};

static inline float fused(float a, float b, float c) { return (float)((double)a * (double)b + (double)c); }

static inline float log_factorial(float k) {
    const float shifted = k + 7.5f, log_shifted = (float)2.0149030205422647 + full_log(1.0f + k / 7.5f);
    float series = (float)0.99999999999980993;
    UNROLL for (int i = 0; i < 8; i++) series = series + LANCZOS[i] / (k + (float)(i + 1));
    return fused((k + 0.5f) - shifted / log_shifted, log_shifted, (float)0.9189385332046727) + full_log(series);
}

/* One proposal of transformed rejection for element i, and whether it is accepted. */
static inline bool proposed(const u32 key[2], u64 i, float rate, float *count) {
    const float b = 0.931f + 2.53f * sqrtf(rate), a = -0.059f + 0.02483f * b;
    const float inverse_alpha = 1.1239f + (1.0f / (b - 3.4f)) * 1.1328f;
    const float u = unit_at<float>(key, 1, i) - 0.5f, v = unit_at<float>(key, 2, i);
    const float us = 0.5f - (u < 0 ? -u : u), k = floorf(fused(2.0f * a / us + b, u, rate) + 0.43f);
    *count = k;
    if (us >= 0.07f && v <= 0.9277f - (1.0f / (b - 2.0f)) * 3.6224f) return true;
    if (k < 0 || (us < 0.013f && v > us)) return false;
    const float log_bound = full_log(v * inverse_alpha / (a / (us * us) + b));
    return log_bound <= fused(k, full_log(rate), -rate) - log_factorial(k);
}

static inline bool is_rate(const struct task *t, float rate) { return rate >= 0 && rate <= (float)t->a; }

/* The rounds until all elements of a row are accepted, as the largest number of any of them, in work[row]. */
static inline void rounds(const u32 first[2], u64 row, u64 i, u64 at, const struct task *t) {
    const float given = first_of<float>(t, at), rate = given < 10.0f ? 1e5f : given;
    u32 key[2] = {first[0], first[1]}, n = 1;
    float k;
    if (!is_rate(t, given)) return;
    _Pragma("unroll 1") for (; n < MOST_ROUNDS && !proposed(key, i, rate, &k); n++) fold(key, 0, 0);
    u32 *most = (u32 *)t->work + row;
    if (*(const volatile u32 *)most < n) atomicMax(most, n); /* seldom, once a few elements have been here */
}

/* A count of Poisson's distribution; -1 for a rate out of range, or where MOST_ROUNDS proposals are rejected. */
static inline float poisson(const u32 first[2], u64 row, u64 i, u64 at, const struct task *t) {
    const float rate = first_of<float>(t, at);
    u32 key[2] = {first[0], first[1]};
    float k, count = 0, log_product = 0, sample = -1.0f;
    if (!is_rate(t, rate)) return sample;
    if (rate == 0) return 0;
    if (rate < 10.0f) {
        _Pragma("unroll 1") for (int n = 0; n < MOST_ROUNDS && log_product > -rate; n++) {
            count += 1;
            log_product = log_product + full_log(unit_at<float>(key, 1, i));
            fold(key, 0, 0);
        }
        return count - 1;
    }
    const u32 all = ((const u32 *)t->work)[row];
    _Pragma("unroll 1") for (u32 n = 0; n < all; n++) { /* the last accepted proposal, as in JAX */
        if (proposed(key, i, rate, &k)) sample = k;
        fold(key, 0, 0);
    }
    return sample;
}

/* The first element of n running sums that is at least x; the last element if there is none, as with NaN weights. */
template <typename T> static inline u64 searched(const T *sums, u64 n, T x) {
    u64 low = 0, high = n - 1;
    while (low < high) {
        const u64 middle = low + (high - low) / 2;
        if (sums[middle] >= x) high = middle;
        else low = middle + 1;
    }
    return low;
}

static inline i64 clamped(i64 x, i64 least, i64 most) { return x < least ? least : x > most ? most : x; }

/* base + (two words) mod span as `integers`, with bounds of each element: see `between` in _integers.py. The task holds the
 * range of the result's dtype. */
static inline void in_range(bool wide, const u32 key[2], u64 i, u64 at, const struct task *t) {
    const i64 lowest = (i64)t->base, highest = (i64)t->span, above = second_of<i64>(t, at);
    const i64 base = clamped(first_of<i64>(t, at), lowest, highest), end = clamped(above, lowest, highest);
    u64 span = (u64)end - (u64)base + (u64)(above > highest);
    if (!wide) span &= 0xFFFFFFFFu;
    if (end <= base) span = 1;
    const u32 n = (u32)span;
    u32 upper[2] = {key[0], key[1]}, lower[2] = {key[0], key[1]};
    fold(upper, 0, 0);
    fold(lower, 0, 1);
    const u32 u2 = upper[0] ^ upper[1] ^ 0x1BD11BDAu, l2 = lower[0] ^ lower[1] ^ 0x1BD11BDAu;
    u32 x = (u32)(i >> 32), y = (u32)i, z = x, w = y;
    THREEFRY(upper[0], upper[1], u2, x, y)
    THREEFRY(lower[0], lower[1], l2, z, w)
    const u64 a = ((u64)x << 32) | y, b = ((u64)z << 32) | w;
    const u64 value = (u64)base + (wide ? offset64(a, b, span, factor64(span), span ? ~(u64)0 / span : 0)
                                        : offset32(x ^ y, z ^ w, n, factor32(n), n ? ~(u32)0 / n : 0));
    store(t, at, value);
}

/* Element i of a row, which is element `at` of the result, by one thread. */
template <typename T>
static inline void sampled(const int kind, const u32 key[2], u64 row, u64 i, u64 at, const struct task *t) {
    T *out = (T *)t->out;
    u32 own[2];
    T u;
    switch (kind) {
    case TRUNCATED32:
    case TRUNCATED64:
        unit(key, i, &u);
        out[at] = truncated<T>(u, first_of<T>(t, at), second_of<T>(t, at), (T)t->a);
        break;
    case GAMMA32:
    case GAMMA64:
    case LOGGAMMA32:
    case LOGGAMMA64:
        split_at(key, i, own);
        out[at] = gamma_of<T>(own, first_of<T>(t, at), kind == LOGGAMMA32 || kind == LOGGAMMA64);
        break;
    case SHARE32:
    case SHARE64: out[at] = (T)share((double)first_of<T>(t, at), (double)second_of<T>(t, at)); break;
    case LOG32:
    case LOG64: out[at] = full_log(first_of<T>(t, at)); break;
    case CHOICE32:
    case CHOICE64: {
        const T *sums = (const T *)t->data + row * t->inner;
        unit(key, i, &u);
        ((i64 *)t->out)[at] = (i64)searched<T>(sums, t->inner, sums[t->inner - 1] * (1 - u));
        break;
    }
    case PRODUCT32:
    case PRODUCT64: { /* row `at` of matrices of `inner` columns; data_row is the step from matrix to matrix */
        const u64 n = t->inner, matrix = at / n;
        const T *column = (const T *)t->data + (i64)matrix * t->data_row + at % n * n;
        u = 0;
        for (u64 j = 0; j < n; j++) u = u + column[j] * ((const T *)t->other)[matrix * n + j];
        out[at] = u;
        break;
    }
    case ROUNDS: rounds(key, row, i, at, t); break;
    case POISSON: store(t, at, (u64)(i64)poisson(key, row, i, at, t)); break;
    case SIGN32:
    case SIGN64: /* words of 1 and -1 in the dtype of the result */
        unit(key, i, &u);
        store(t, at, u < (T)0.5 ? t->base : t->span);
        break;
    case BETWEEN32:
    case BETWEEN64: {
        const T low = first_of<T>(t, at) + (T)0;
        unit(key, i, &u);
        const T value = scaled(u, low, second_of<T>(t, at) - low);
        out[at] = low != low ? low : value;
        break;
    }
    case RANGE32:
    case RANGE64: in_range(kind == RANGE64, key, i, at, t); break;
    case KEYEDGAMMA32:
    case KEYEDGAMMA64: { /* at least the smallest normal number, so that the logarithm is finite, as in torch */
        const T value = (T)exp64(log_gamma_of(key, i, (double)first_of<T>(t, at)));
        out[at] = value < (T)t->a ? (T)t->a : value;
        break;
    }
    case KEYEDLOGGAMMA32:
    case KEYEDLOGGAMMA64: ((double *)t->out)[at] = log_gamma_of(key, i, (double)first_of<T>(t, at)); break;
    case KEYEDPOISSON32:
    case KEYEDPOISSON64: out[at] = (T)poisson_of(key, i, (double)first_of<T>(t, at)); break;
    case KEYEDBINOMIAL32:
    case KEYEDBINOMIAL64:
        out[at] = (T)binomial_of(key, i, (double)first_of<T>(t, at), (double)second_of<T>(t, at));
        break;
    case KEYEDVONMISES32:
    case KEYEDVONMISES64: out[at] = (T)von_mises_of(key, i, (double)first_of<T>(t, at)); break;
    }
}

/* The same for bounds of 16 bits, where every operation rounds. */
static inline void between16(const int kind, const u32 key[2], u64 i, u64 at, const struct task *t) {
    const u16 first = first_of<u16>(t, at), second = second_of<u16>(t, at);
    const u32 k0 = key[0], k1 = key[1], k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    u32 x = (u32)(i >> 32), y = (u32)i;
    THREEFRY(k0, k1, k2, x, y)
    if (kind == BETWEEN16) {
        UNIFORM(half, unit16(x ^ y), half_value(first), half_value(second), value)
        ((u16 *)t->out)[at] = half_word(low != low ? low : value);
    } else {
        UNIFORM(brain, unitb16(x ^ y), brain_value(first), brain_value(second), value)
        ((u16 *)t->out)[at] = brain_word(low != low ? low : value);
    }
}

/* The elements of one thread, as `draw`. */
template <typename T> static inline void sample(const int kind, const struct task *t, u64 thread) {
    u64 row, i;
    u32 key[2] = {0, 0};
    if (!place(t, thread, &row, &i)) return;
    if (t->keys) load(t, row, key);
    _Pragma("unroll 1") for (; i < t->count; i += t->per_row) {
        const u64 at = row * t->count + i;
        if (kind == BETWEEN16 || kind == BETWEENB16) between16(kind, key, i, at, t);
        else sampled<T>(kind, key, row, i, at, t);
    }
}

template <typename T> static inline void sampler(const int kind, const struct task *t, u64 block) {
    if (kind == SOFTMAX32 || kind == SOFTMAX64) softmax<T>(t, block);
    else if (kind == SUMS32 || kind == SUMS64) running_sums<T>(t, block);
    else if (kind == BALL32 || kind == BALL64) ball<T>(t, block);
    else sample<T>(kind, t, block * blockDim.x + threadIdx.x);
}

/* Compiled once for each KIND that is drawn; kinds of float32 are odd. */
extern "C" __global__ void ftrain_sampler(const __grid_constant__ struct task t) {
    if (KIND % 2) sampler<float>(KIND, &t, blockIdx.x);
    else sampler<double>(KIND, &t, blockIdx.x);
}
