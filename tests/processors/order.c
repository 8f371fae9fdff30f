/* Matrix products that sum in an order chosen by their shape and, if asked, by the alignment of their
 * memory, as MKL's do on some processors: preloaded, these stand in front of those inside torch. Equal
 * shapes give equal bits, so a test that fails with them has compared products of different shapes.
 */
#include <stdint.h>
#include <stdlib.h>

static int by_alignment = -1;

static unsigned order_of(long m, long n, long k, long batch, const void *a, const void *b) {
    if (by_alignment < 0) by_alignment = getenv("FTRAIN_TEST_ALIGNMENT") != NULL;
    unsigned order = (unsigned)(m * 7 + n * 5 + k * 3 + batch + 1);
    if (by_alignment) order += (unsigned)(((uintptr_t)a & 63) / 16 + ((uintptr_t)b & 63) / 16);
    return order % 4;
}

/* Forwards, backwards, or in two or three partial sums. */
#define PRODUCTS(T, P)                                                                              \
    static T P##_sum(const T *a, long sa, const T *b, long sb, long k, unsigned order) {            \
        T part[3] = {0, 0, 0}, sum = 0;                                                             \
        if (order == 1) {                                                                           \
            for (long i = k - 1; i >= 0; i--) sum += a[i * sa] * b[i * sb];                         \
            return sum;                                                                             \
        }                                                                                           \
        long parts = order == 0 ? 1 : order;                                                        \
        for (long i = 0; i < k; i++) part[i % parts] += a[i * sa] * b[i * sb];                      \
        for (long i = parts - 1; i >= 0; i--) sum += part[i];                                       \
        return sum;                                                                                 \
    }                                                                                               \
    static void P##_gemm(int ta, int tb, long m, long n, long k, T alpha, const T *a, long lda,     \
                         const T *b, long ldb, T beta, T *c, long ldc, long batch) {                \
        unsigned order = order_of(m, n, k, batch + 2 * ta + tb, a, b);                              \
        for (long j = 0; j < n; j++)                                                                \
            for (long i = 0; i < m; i++) {                                                          \
                T value = alpha * P##_sum(ta ? a + i * lda : a + i, ta ? 1 : lda,                   \
                                          tb ? b + j : b + j * ldb, tb ? ldb : 1, k, order);        \
                T *out = c + i + j * ldc;                                                           \
                *out = beta == 0 ? value : value + beta * *out;                                     \
            }                                                                                       \
    }                                                                                               \
    void P##gemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k,         \
                  const T *alpha, const T *a, const int *lda, const T *b, const int *ldb,           \
                  const T *beta, T *c, const int *ldc) {                                            \
        P##_gemm((*ta | 32) != 'n', (*tb | 32) != 'n', *m, *n, *k, *alpha, a, *lda, b, *ldb, *beta, \
                 c, *ldc, 0);                                                                       \
    }                                                                                               \
    void P##gemv_(const char *ta, const int *m, const int *n, const T *alpha, const T *a,           \
                  const int *lda, const T *x, const int *sx, const T *beta, T *y, const int *sy) {  \
        int transposed = (*ta | 32) != 'n';                                                         \
        long rows = transposed ? *n : *m, k = transposed ? *m : *n;                                 \
        unsigned order = order_of(rows, 1, k, transposed, a, x);                                    \
        for (long i = 0; i < rows; i++) {                                                           \
            T value = *alpha * P##_sum(transposed ? a + i * (long)*lda : a + i,                     \
                                       transposed ? 1 : *lda, x, *sx, k, order);                    \
            T *out = y + i * (long)*sy;                                                             \
            *out = *beta == 0 ? value : value + *beta * *out;                                       \
        }                                                                                           \
    }                                                                                               \
    T P##dot_(const int *n, const T *x, const int *sx, const T *y, const int *sy) {                 \
        return P##_sum(x, *sx, y, *sy, *n, order_of(1, 1, *n, 0, x, y));                            \
    }                                                                                               \
    void cblas_##P##gemm_batch(int layout, const int *ta, const int *tb, const int *m,              \
                               const int *n, const int *k, const T *alpha, const T **a,             \
                               const int *lda, const T **b, const int *ldb, const T *beta, T **c,   \
                               const int *ldc, int groups, const int *sizes) {                      \
        const int none = 111, columns = 102;                                                        \
        long at = 0;                                                                                \
        for (int g = 0; g < groups; g++)                                                            \
            for (int i = 0; i < sizes[g]; i++, at++) {                                              \
                int at_ = ta[g] != none, bt = tb[g] != none;                                        \
                if (layout == columns)                                                              \
                    P##_gemm(at_, bt, m[g], n[g], k[g], alpha[g], a[at], lda[g], b[at], ldb[g],     \
                             beta[g], c[at], ldc[g], sizes[g]);                                     \
                else                                                                                \
                    P##_gemm(bt, at_, n[g], m[g], k[g], alpha[g], b[at], ldb[g], a[at], lda[g],     \
                             beta[g], c[at], ldc[g], sizes[g]);                                     \
            }                                                                                       \
    }

PRODUCTS(float, s)
PRODUCTS(double, d)
