"""Building blocks of the models: Flax Linen modules over ``cnnjax.ops``.

Models use these, never ``flax.linen``'s convolution, pooling and normalization, so that there is one place
to make fast. The pooling functions have no parameters and are those of ``ops.pool``.
"""

from cnnjax.nn.conv import Conv, ConvTranspose, DepthwiseConv, SeparableConv
from cnnjax.nn.fold import fold_batch_norm
from cnnjax.nn.norm import BatchNorm, LocalResponseNorm, local_response_norm
from cnnjax.nn.pool import Subsample
from cnnjax.ops.pool import avg_pool, depth_max_pool, global_avg_pool, max_pool

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "DepthwiseConv",
    "LocalResponseNorm",
    "SeparableConv",
    "Subsample",
    "avg_pool",
    "depth_max_pool",
    "fold_batch_norm",
    "global_avg_pool",
    "local_response_norm",
    "max_pool",
]
