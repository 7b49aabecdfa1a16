"""Building blocks of the models: Flax Linen modules over ``cnnjax.ops``.

Models use these, never ``flax.linen``'s convolution, pooling and normalization, so that one place decides how they are
computed. The pooling functions have no parameters and are those of ``ops.pool``.
"""

from cnnjax.nn.activation import leaky_relu, relu, relu6
from cnnjax.nn.block import (
    ConvNorm,
    Head,
    SqueezeExcite,
    ceil_padding,
    check_images,
    check_padding,
    he_normal_fan_out,
    rematerialized,
)
from cnnjax.nn.conv import Conv, ConvTranspose, DepthwiseConv, SeparableConv
from cnnjax.nn.dense import Dense
from cnnjax.nn.fold import fold_batch_norm
from cnnjax.nn.fully_convolutional import to_fully_convolutional
from cnnjax.nn.norm import BatchNorm, LocalResponseNorm, local_response_norm
from cnnjax.nn.pool import Subsample
from cnnjax.nn.pyramid import pyramid
from cnnjax.nn.upsample import BilinearUp, ResizeConv, SubPixel
from cnnjax.ops.pool import adaptive_avg_pool, avg_pool, depth_max_pool, global_avg_pool, max_pool

__all__ = [
    "BatchNorm",
    "BilinearUp",
    "Conv",
    "ConvNorm",
    "ConvTranspose",
    "Dense",
    "DepthwiseConv",
    "Head",
    "LocalResponseNorm",
    "ResizeConv",
    "SeparableConv",
    "SqueezeExcite",
    "SubPixel",
    "Subsample",
    "adaptive_avg_pool",
    "avg_pool",
    "ceil_padding",
    "check_images",
    "check_padding",
    "depth_max_pool",
    "fold_batch_norm",
    "global_avg_pool",
    "he_normal_fan_out",
    "leaky_relu",
    "local_response_norm",
    "max_pool",
    "pyramid",
    "relu",
    "relu6",
    "rematerialized",
    "to_fully_convolutional",
]
