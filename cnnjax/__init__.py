"""Deep computer vision with convolutional networks in JAX and Flax."""
