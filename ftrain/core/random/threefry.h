/* Threefry-2x32 and the conversion of its words, one element at a time.
 *
 * `threefry.c` (CPU) and `threefry.cu` (CUDA) are compiled from these functions: one source, the same bits. Words,
 * mantissas and thresholds are those of _threefry.py, _floats.py and _normal.py, operation by operation; must be
 * compiled without contraction (-ffp-contract=off, --fmad=false): one rounding more or less is another number.
 * C, C++ and NVRTC, which has no headers.
 *
 * Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
#ifdef __CUDACC_RTC__
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
#define UNROLL _Pragma("unroll")
#define HIGH64(a, b) __umul64hi(a, b)
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
typedef int8_t i8;
typedef uint8_t u8;
typedef int16_t i16;
typedef uint16_t u16;
typedef int32_t i32;
typedef uint32_t u32;
typedef int64_t i64;
typedef uint64_t u64;
#define UNROLL _Pragma("GCC unroll 32")
#ifdef __SIZEOF_INT128__
#define HIGH64(a, b) (u64)(((unsigned __int128)(a) * (b)) >> 64)
#endif
#endif

/* The order of the constants in _cpu_kernel.py; kinds of 16 bits after them, in threefry.cu. */
enum kind { BITS8, BITS16, BITS32, BITS64, PAIRS, BELOW, UNIFORM32, UNIFORM64, NORMAL32, NORMAL64 };

#define MIX(a, b, r)                       \
    a += b;                                \
    b = (b << (r)) | (b >> (32 - (r)));    \
    b ^= a;

#define FOUR(a, b, r0, r1, r2, r3) MIX(a, b, r0) MIX(a, b, r1) MIX(a, b, r2) MIX(a, b, r3)

#define THREEFRY(k0, k1, k2, a, b)                                   \
    a += k0; b += k1;                                                \
    FOUR(a, b, 13, 15, 26, 6)  a += k1; b += k2 + 1u;                \
    FOUR(a, b, 17, 29, 16, 24) a += k2; b += k0 + 2u;                \
    FOUR(a, b, 13, 15, 26, 6)  a += k0; b += k1 + 3u;                \
    FOUR(a, b, 17, 29, 16, 24) a += k1; b += k2 + 4u;                \
    FOUR(a, b, 13, 15, 26, 6)  a += k2; b += k0 + 5u;

static void fold(u32 key[2], u32 high, u32 low) {
    u32 k0 = key[0], k1 = key[1], k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    THREEFRY(k0, k1, k2, high, low)
    key[0] = high;
    key[1] = low;
}

static inline float unit32(u32 word) {
    u32 pattern = (word >> 9) | 0x3F800000u;
    float value;
    memcpy(&value, &pattern, sizeof value);
    return value - 1.0f;
}

static inline double unit64(u32 high, u32 low) {
    u64 pattern = ((((u64)high << 32) | low) >> 12) | 0x3FF0000000000000u;
    double value;
    memcpy(&value, &pattern, sizeof value);
    return value - 1.0;
}

/* u span + low with a single rounding, at least low. */
static inline float scaled32(float unit, float low, float span) {
    const float value = fmaf(unit, span, low);
    return value < low ? low : value;
}

static inline double scaled64(double unit, double low, double span) {
    const double value = fma(unit, span, low);
    return value < low ? low : value;
}

static const float CENTRE32[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f, -4.39150654e-06f,
    0.00021858087f, -0.00125372503f, -0.00417768164f, 0.246640727f, 1.50140941f};
static const float TAIL32[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f,
    0.00573950773f, -0.0076224613f, 0.00943887047f, 1.00167406f, 2.83297682f};
static const double CENTRE64[] = {-3.64441206401782e-21, -1.6850591381820166e-19, 1.28584807152564e-18,
    1.1157877678025181e-17, -1.3331716628546209e-16, 2.0972767875968562e-17, 6.6376381343583238e-15,
    -4.0545662729752069e-14, -8.1519341976054722e-14, 2.6335093153082323e-12, -1.2975133253453532e-11,
    -5.4154120542946279e-11, 1.0512122733215323e-09, -4.1126339803469837e-09, -2.9070369957882005e-08,
    4.2347877827932404e-07, -1.3654692000834679e-06, -1.3882523362786469e-05, 0.00018673420803405714,
    -0.000740702534166267, -0.0060336708714301491, 0.24015818242558962, 1.6536545626831027};
static const double MIDDLE64[] = {2.2137376921775787e-09, 9.0756561938885391e-08, -2.7517406297064545e-07,
    1.8239629214389228e-08, 1.5027403968909828e-06, -4.013867526981546e-06, 2.9234449089955446e-06,
    1.2475304481671779e-05, -4.7318229009055734e-05, 6.8284851459573175e-05, 2.4031110387097894e-05,
    -0.00035503752036284748, 0.0009532893797373805, -0.0016882755560235047, 0.0024914420961078508,
    -0.0037512085075692412, 0.0053709145535900636, 1.0052589676941592, 3.0838856104922208};
static const double TAIL64[] = {-2.7109920616438573e-11, -2.5556418169965252e-10, 1.5076572693500548e-09,
    -3.789465440126737e-09, 7.61570120807834e-09, -1.496002662714924e-08, 2.9147953450901081e-08,
    -6.7711997758452339e-08, 2.2900482228026655e-07, -9.9298272942317e-07, 4.5260625972231537e-06,
    -1.9681778105531671e-05, 7.5995277030017761e-05, -0.00021503011930044477, -0.00013871931833623122,
    1.0103004648645344, 4.8499064014085844};
static const float NUMERATOR32[] = {
    4.52700008624452e-05f, 0.49854102823193375f, 6.578732594206104f, 29.911919328553072f,
    60.94966798098779f, 57.11296359058554f, 20.039553499201283f};
static const float DENOMINATOR32[] = {
    1.0f, 15.062909083469192f, 83.04756596796722f, 221.76239823732857f, 309.09872225312057f,
    216.42788614495947f, 60.11866049760384f};
static const double NUMERATOR64[] = {
    4.52700008624452e-05, 0.49854102823193375, 6.578732594206104, 29.911919328553072, 60.94966798098779,
    57.11296359058554, 20.039553499201283};
static const double DENOMINATOR64[] = {
    1.0, 15.062909083469192, 83.04756596796722, 221.76239823732857, 309.09872225312057,
    216.42788614495947, 60.11866049760384};
static const float SERIES32[] = {2.0f / 13, 2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3};
static const double SERIES64[] = {2.0 / 25, 2.0 / 23, 2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9,
    2.0 / 7, 2.0 / 5, 2.0 / 3};

/* Unrolled, so that the loop around it vectorises. */
#define HORNER(table, x, value)                                                   \
    value = (table)[0];                                                           \
    UNROLL for (unsigned term = 1; term < sizeof(table) / sizeof *(table); term++) \
        value = value * (x) + (table)[term];

/* log(1 + x), -1 < x <= 0, and log(x): see _log1p and _log in _normal.py. */
static inline float log32(float x) {
    const float root_half = 0.70710678118654752440f;
    u32 half_word, word;
    float f, s, s2, series;
    memcpy(&half_word, &root_half, sizeof word);
    memcpy(&word, &x, sizeof word);
    word -= half_word;
    const float k = (float)((i32)word >> 23);
    word = (word & 0x007FFFFFu) + half_word;
    memcpy(&f, &word, sizeof word);
    f -= 1.0f;
    s = f / (2.0f + f);
    s2 = s * s;
    HORNER(SERIES32, s2, series)
    series *= s2;
    return k * 0.693145751953125f + ((f - s * (f - series)) + k * 1.4286068203094173e-06f);
}

static inline double log64(double x) {
    const double root_half = 0.70710678118654752440;
    u64 half_word, word;
    double f, s, s2, series;
    memcpy(&half_word, &root_half, sizeof word);
    memcpy(&word, &x, sizeof word);
    word -= half_word;
    const double k = (double)((i64)word >> 52);
    word = (word & 0x000FFFFFFFFFFFFFu) + half_word;
    memcpy(&f, &word, sizeof word);
    f -= 1.0;
    s = f / (2.0 + f);
    s2 = s * s;
    HORNER(SERIES64, s2, series)
    series *= s2;
    return k * 0.6931471803691238 + ((f - s * (f - series)) + k * 1.9082149292705877e-10);
}

static inline float log1p32(float x) {
    const float x2 = x * x, distant = log32(1.0f + x);
    float p, q;
    HORNER(NUMERATOR32, x, p)
    HORNER(DENOMINATOR32, x, q)
    return x > -0.41421356237309504880f ? x + (x2 * -0.5f + x * x2 * (p / q)) : distant;
}

static inline double log1p64(double x) {
    const double x2 = x * x, distant = log64(1.0 + x);
    double p, q;
    HORNER(NUMERATOR64, x, p)
    HORNER(DENOMINATOR64, x, q)
    return x > -0.41421356237309514547 ? x + (x2 * -0.5 + x * x2 * (p / q)) : distant;
}

static inline float erfinv32(float u) {
    float w = -log1p32(u * -u), centre, tail;
    float a = w - 2.5f, b = sqrtf(w) - 3.0f;
    HORNER(CENTRE32, a, centre)
    HORNER(TAIL32, b, tail)
    return (w < 5.0f ? centre : tail) * u;
}

static inline float normal32(float unit) {
    const float lowest = 5.9604644775390625e-08f - 1.0f;
    float u = unit * 2.0f + lowest;
    u = u < lowest ? lowest : u;
    return 1.41421356237309504880f * erfinv32(u);
}

static inline double erfinv64(double u) {
    double w = -log1p64(u * -u), root = sqrt(w), centre, middle, tail;
    double a = w - 3.125, b = root - 3.25, c = root - 5.0;
    HORNER(CENTRE64, a, centre)
    HORNER(MIDDLE64, b, middle)
    HORNER(TAIL64, c, tail)
    return (w < 6.25 ? centre : w < 16.0 ? middle : tail) * u;
}

static inline double normal64(double unit) {
    const double lowest = 1.1102230246251565e-16 - 1.0;
    double u = unit * 2.0 + lowest;
    u = u < lowest ? lowest : u;
    return 1.41421356237309504880 * erfinv64(u);
}

/* a mod n by the reciprocal floor((2^64 - 1) / n), whose quotient is at most two too small: three divisions
 * an element would be nine tenths of the time. */
static inline u64 remainder64(u64 a, u64 n, u64 reciprocal) {
#ifdef HIGH64
    u64 rest = a - HIGH64(a, reciprocal) * n;
    rest -= rest >= n ? n : 0;
    return rest - (rest >= n ? n : 0);
#else
    (void)reciprocal;
    return n ? a % n : 0;
#endif
}

/* The same for 32 bits: the reciprocal is floor((2^32 - 1) / n). */
static inline u32 remainder32(u32 a, u32 n, u32 reciprocal) {
    u32 rest = a - (u32)(((u64)a * reciprocal) >> 32) * n;
    rest -= rest >= n ? n : 0;
    return rest - (rest >= n ? n : 0);
}

/* 2^64 mod span and 2^32 mod span; a span of 0 stands for 2^64 or 2^32. */
static inline u64 factor64(u64 span) {
    const u64 factor = span ? 0x100000000u % span : 0;
    return span ? factor * factor % span : 0;
}

static inline u32 factor32(u32 span) {
    const u32 factor = span ? 0x10000u % span : 0;
    return span ? factor * factor % span : 0;
}

/* (2^64 a + b) mod span and (2^32 a + b) mod span, with the reciprocal of `span`. */
static inline u64 offset64(u64 a, u64 b, u64 span, u64 factor, u64 reciprocal) {
    const u64 sum = remainder64(a, span, reciprocal) * factor + remainder64(b, span, reciprocal);
    return span ? remainder64(sum, span, reciprocal) : b;
}

static inline u32 offset32(u32 a, u32 b, u32 span, u32 factor, u32 reciprocal) {
    const u32 sum = remainder32(a, span, reciprocal) * factor + remainder32(b, span, reciprocal);
    return span ? remainder32(sum, span, reciprocal) : b;
}
