/* The samplers of `keyed` on CUDA: gamma, Poisson, binomial and von Mises draws as _rejection.py proposes and accepts them.
 *
 * Each function repeats the tensor operations of _rejection.py in float64, with the logarithms of threefry.h in place of
 * the library's: both round to within an ulp or two, which decides about one proposal in some 10^8. Follows elementary.cu.
 */

enum { MOST_PROPOSALS = 1000 };

static const double PI = 3.14159265358979323846;

/* log(k!) for k < 10 */
static const double LOG_FACTORIALS[] = {0.0, 0.0, 0.69314718055994530942, 1.79175946922805500081, 3.17805383034794561965,
    4.78749174278204599425, 6.57925121201010099506, 8.52516136106541430017, 10.60460290274525022842,
    12.80182748008146961121};

/* log(1 + x) for x > -1; its error is that of the logarithm of 1 + x as rounded, which the quotient corrects. */
static inline double log_of_sum(double x) {
    const double sum = 1.0 + x;
    return x != x ? x : sum > 0 ? full_log(sum) + (x - (sum - 1.0)) / sum : -(double)infinity32();
}

static inline bool is_finite(double x) { return x - x == 0.0; }

/* The key of round n of element i, and the element of that key: see `_rejected`. */
static inline u64 of_round(const u32 key[2], u64 i, u32 n, u32 own[2]) {
    own[0] = key[0];
    own[1] = key[1];
    fold(own, 0, n > 0);
    if (!n) return i;
    fold(own, 0, (u32)i);
    fold(own, 0, n - 1);
    return 0;
}

/* `log_gamma` */
static inline double log_gamma_of(const u32 key[2], u64 i, double alpha) {
    const double d = (alpha < 1 ? alpha + 1 : alpha) - 1.0 / 3.0;
    double value = nan64();
    u32 own[2];
    if (!(alpha >= 0 && is_finite(alpha))) return value;
    _Pragma("unroll 1") for (u32 n = 0; n <= MOST_PROPOSALS; n++) {
        const u64 at = of_round(key, i, n, own);
        const double x = normal_of(unit_at<double>(own, 0, at)), u = unit_at<double>(own, 1, at);
        const double t = x / sqrt(9.0 * d), cube = t * t * t;
        const double log_sum = log_of_sum(t < -1 ? -1.0 : t), size = t < 0 ? -t : t;
        const double remainder = size < 1e-3 ? -(cube * t) / 4.0 + cube * t * t / 5.0 : log_sum - t + t * t / 2.0 - cube / 3.0;
        if (t > -1 && log_of_sum(-u) < 3.0 * d * remainder) {
            value = full_log(d) + 3.0 * log_sum;
            break;
        }
    }
    return alpha < 1 ? value + log_of_sum(-unit_at<double>(key, 2, i)) / alpha : value;
}

/* `_log_poisson` */
static inline double log_poisson(double k, double rate) {
    if (k < 10) return k * full_log(rate) - rate - LOG_FACTORIALS[(int)k];
    const double t = (k - rate) / rate, series = t * t * (0.5 - t * (1.0 / 6.0 - t * (1.0 / 12.0 - t / 20.0)));
    const double deviance = rate * ((t < 0 ? -t : t) < 1e-3 ? series : (1.0 + t) * log_of_sum(t) - t);
    const double tail = (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * k * k)) / (k * k)) / k;
    return -deviance - 0.5 * full_log(2.0 * PI * k) - tail;
}

/* `_summed`: the first k whose cumulative probability exceeds u, where P(k) = P(k - 1) (n - k + 1) / k odds. Poisson's
 * distribution has no n. */
static inline double summed(double u, double first, bool is_poisson, double n, double odds) {
    double found = 0, p = first, rest = u - first;
    if (!(u >= first)) return 0;
    _Pragma("unroll 1") for (int k = 1; k < 200; k++) {
        p = p * (is_poisson ? odds / k : (n - k + 1.0) / k * odds);
        found = k;
        if (!(rest >= p)) break;
        rest = rest - p;
    }
    return found;
}

/* `poisson`; NaN for a rate out of range */
static inline double poisson_of(const u32 key[2], u64 i, double rate) {
    u32 own[2];
    if (!(rate >= 0 && is_finite(rate))) return nan64();
    if (rate < 10.0) return summed(unit_at<double>(key, 2, i), exp64(-rate), true, 0, rate);
    const double b = 0.931 + 2.53 * sqrt(rate), a = -0.059 + 0.02483 * b;
    _Pragma("unroll 1") for (u32 n = 0; n <= MOST_PROPOSALS; n++) {
        const u64 at = of_round(key, i, n, own);
        const double u = unit_at<double>(own, 0, at) - 0.5, v = unit_at<double>(own, 1, at), us = 0.5 - (u < 0 ? -u : u);
        const double k = floor((2.0 * a / us + b) * u + rate + 0.43);
        if (!(k >= 0)) continue;
        if (full_log(v * (1.1239 + 1.1328 / (b - 3.4)) / (a / (us * us) + b)) <= log_poisson(k, rate)) return k;
    }
    return nan64();
}

/* `_stirling_tail` */
static inline double stirling_tail(double k) {
    const double n = k + 1.0;
    if (k < 10) return LOG_FACTORIALS[(int)k] - ((k + 0.5) * full_log(n) - n + 0.91893853320467274178);
    return (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * n * n)) / (n * n)) / n;
}

/* `_log_binomial` */
static inline double log_binomial(double k, double n, double p) {
    const double mode = floor((n + 1.0) * p), odds = p / (1.0 - p);
    return (mode + 0.5) * full_log((mode + 1.0) / (odds * (n - mode + 1.0)))
        + (n + 1.0) * full_log((n - mode + 1.0) / (n - k + 1.0))
        + (k + 0.5) * full_log(odds * (n - k + 1.0) / (k + 1.0))
        + (stirling_tail(mode) + stirling_tail(n - mode) - stirling_tail(k) - stirling_tail(n - k));
}

/* `binomial` */
static inline double binomial_of(const u32 key[2], u64 i, double count, double prob) {
    const double n = floor(count), p = prob < 1.0 - prob ? prob : 1.0 - prob;
    double found = nan64();
    u32 own[2];
    if (prob != prob || n != n) return found;
    const bool is_valid = is_finite(n) && is_finite(prob);
    if (n <= 0 || p <= 0) found = 0;
    else if (n * p < 10.0) {
        const double first = is_valid ? exp64(n * log_of_sum(-p)) : 1.0;
        found = summed(unit_at<double>(key, 2, i), first, false, n, p / (1.0 - p));
    } else if (is_valid) {
        const double deviation = sqrt(n * p * (1.0 - p)), b = 1.15 + 2.53 * deviation;
        const double a = -0.0873 + 0.0248 * b + 0.01 * p, alpha = (2.83 + 5.1 / b) * deviation;
        _Pragma("unroll 1") for (u32 r = 0; r <= MOST_PROPOSALS; r++) {
            const u64 at = of_round(key, i, r, own);
            const double u = unit_at<double>(own, 0, at) - 0.5, v = unit_at<double>(own, 1, at);
            const double us = 0.5 - (u < 0 ? -u : u), k = floor((2.0 * a / us + b) * u + n * p + 0.5);
            if (!(k >= 0 && k <= n)) continue;
            if (full_log(v * alpha / (a / (us * us) + b)) <= log_binomial(k, n, p)) {
                found = k;
                break;
            }
        }
    }
    return prob > 0.5 ? (n < 0 ? 0.0 : n) - found : found;
}

/* `von_mises`; NaN for a concentration out of range */
static inline double von_mises_of(const u32 key[2], u64 i, double concentration) {
    u32 own[2];
    if (!(concentration > 0 && is_finite(concentration))) return nan64();
    const double kappa = concentration < 1e-150 ? 1e-150 : concentration > 1e150 ? 1e150 : concentration;
    const double root = sqrt(1.0 + 4.0 * (kappa * kappa));
    const double share = (sqrt(2.0 * (1.0 + root)) - 1.0 - 1.0 / (root + 2.0 * kappa)) / (2.0 * kappa);
    const double excess = kappa < 1e-5 ? 1.0 / kappa + kappa - 1.0 : share * share / (2.0 * (1.0 - share));
    _Pragma("unroll 1") for (u32 n = 0; n <= MOST_PROPOSALS; n++) {
        const u64 at = of_round(key, i, n, own);
        const double half = PI / 2.0 * unit_at<double>(own, 0, at), s = sin(half), c = cos(half);
        const double below = excess * 2.0 * (s * s) / (excess + 2.0 * (c * c));
        const double rate = kappa * (excess + below), u = unit_at<double>(own, 1, at);
        if (!(rate * (2.0 - rate) - u > 0 || u == 0 || full_log(rate / u) + 1.0 - rate >= 0)) continue;
        const double part = below / 2.0, angle = 2.0 * asin(sqrt(part < 0 ? 0.0 : part > 1 ? 1.0 : part));
        return unit_at<double>(own, 2, at) < 0.5 ? -angle : angle;
    }
    return nan64();
}
