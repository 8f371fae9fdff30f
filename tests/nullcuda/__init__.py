"""Tests of CUDA that need no values, on a device that computes nothing.

Allocator, streams, capture, autograd, inductor and Triton are the real ones; kernels do nothing. So
launches, syncs, copies, generated code and errors are real, and values mean nothing. Run them by
`make nullcuda NULLCUDA=LAUNCHER`, where the launcher starts Python with stubs of the CUDA libraries that
count (`nc_launch`, `nc_sync`, ... as C `long`); without it they are skipped.
"""
