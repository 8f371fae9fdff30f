/* MKL asks these which processor it runs on: preloaded, an AMD one with AVX-512 computes as Intel's do. */
int mkl_serv_intel_cpu(void) { return 1; }
int mkl_serv_intel_cpu_true(void) { return 1; }
