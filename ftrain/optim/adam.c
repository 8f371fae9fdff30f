/* The update of Adam in two passes over memory, with the operations of `_rule` in adam.py in their order.
 *
 * Between the passes torch takes the square root, since its own (that of MKL) has other bits than sqrtf.
 * Where torch's loops were compiled for a processor with FMA, they round `a b + c` once: `fused`.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define restrict __restrict__
#endif

enum { GRAIN = 32768 };            /* fewest elements that are worth a second thread */

typedef struct {
    const float *gradient, *mean, *square, *param;   /* read; no param: without weight decay */
    float *update, *new_mean, *new_square;           /* written; no two of all these overlap */
    int64_t count;
} leaf;

static inline float multiply_add(int fused, float a, float b, float c) {
    return fused ? fmaf(a, b, c) : a * b + c;
}

/* Write the new moments, and into `update` what the square root is taken of. one_b1 is less than 0.5: from
 * there on torch.lerp computes otherwise, with zeros whose sign depends on their place in a vector. */
void ftrain_adam_moments(const leaf *leaves, int64_t leaf_count, int fused, float one_b1, float b2,
                         float one_b2, int threads) {
    (void)threads;                                   /* without OpenMP */
    for (int64_t k = 0; k < leaf_count; k++) {
        const float *restrict g = leaves[k].gradient, *restrict m = leaves[k].mean,
                    *restrict square = leaves[k].square;
        float *restrict new_mean = leaves[k].new_mean, *restrict new_square = leaves[k].new_square,
              *restrict under_root = leaves[k].update;
        const int64_t n = leaves[k].count;
#ifdef _OPENMP
#pragma omp parallel for simd num_threads(threads) if(parallel : n > GRAIN)
#endif
        for (int64_t i = 0; i < n; i++) {
            const float v = multiply_add(fused, g[i] * one_b2, g[i], square[i] * b2);
            new_mean[i] = multiply_add(fused, one_b1, g[i] - m[i], m[i]);
            new_square[i] = v;
            under_root[i] = v < FLT_MIN ? FLT_MIN : v;
        }
    }
}

/* Replace the root in `update` by the update. */
void ftrain_adam_updates(const leaf *leaves, int64_t leaf_count, float correction, float eps, float step,
                         float shrink, int threads) {
    (void)threads;
    for (int64_t k = 0; k < leaf_count; k++) {
        const float *restrict m = leaves[k].new_mean, *restrict p = leaves[k].param;
        float *restrict u = leaves[k].update;
        const int64_t n = leaves[k].count;
#ifdef _OPENMP
#pragma omp parallel for simd num_threads(threads) if(parallel : n > GRAIN)
#endif
        for (int64_t i = 0; i < n; i++) {
            const float adam = m[i] * step / (u[i] / correction + eps);
            u[i] = p ? adam - p[i] * shrink : adam;
        }
    }
}

#ifdef __cplusplus
}
#endif
