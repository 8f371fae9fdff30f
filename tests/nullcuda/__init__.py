"""Tests of CUDA that need no values, on a device that computes nothing.

Allocator, streams, capture, autograd, inductor and Triton are the real ones; kernels do nothing. So
launches, syncs, copies, generated code and errors are real, and values mean nothing. Run them by
`make nullcuda NULLCUDA=LAUNCHER`, where the launcher starts Python with stubs of the CUDA libraries that
count (`nc_launch`, `nc_sync`, ... as C `long`); without it they are skipped. `NC_DEVICES` is the number
of devices, two by default; `NC_DNN=1` tells the tests that cuDNN has stubs too, else torch's own kernels
run in its place.
"""
