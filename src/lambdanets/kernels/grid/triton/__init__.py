"""The op on GPUs: kernels written in Triton, chosen by the planner for tensors on CUDA devices."""
