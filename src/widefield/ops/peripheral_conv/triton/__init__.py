"""Box sums and Toeplitz tiles on tensor cores; only `form` may be imported without Triton."""
