"""Forms that convolution, max pooling and channel sums take when a program is lowered for a CPU."""
