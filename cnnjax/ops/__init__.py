"""Pure functions of arrays: convolution, pooling, and the geometry of boxes."""
