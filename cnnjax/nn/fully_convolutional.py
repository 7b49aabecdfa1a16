"""Classifiers that become fully convolutional networks (Long, Shelhamer & Darrell 2015, sec. 3.1)."""

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from cnnjax.types import PyTree, UserError


def to_fully_convolutional(
    model: linen.Module, variables: PyTree, image_shape: tuple[int, int, int] | None = None
) -> tuple[linen.Module, PyTree]:
    """Network of the same kind with a map of logits, in one pass over an image of any size, and its variables.

    Its dense layers are convolutions with the same weights: the first has a window as large as the last feature map is
    for ``image_shape``, the others have 1×1. Global average pooling becomes average pooling with that window at stride
    1. So images of ``image_shape`` give the same logits as before, ``[n, 1, 1, num_classes]``, and the logits
    ``[n, h', w', num_classes]`` of a larger one are those of the network on a window of ``image_shape`` that slides
    over it by the total stride. They differ in a network that pads: a window by itself has zeros around it, here the
    image goes on. Squeeze-and-excitation averages all of the image; auxiliary heads, which are for training, stay as
    they are.

    Args:
      model: a classifier of ``cnnjax.models``; it has the fields ``window`` and ``num_classes``.
      variables: its variables; they are not changed.
      image_shape: ``(h, w, c)`` of the images that it was made for; None: its own ``image_shape``.

    Returns:
      ``model`` with its ``window``, and ``variables`` in which kernels of dense layers ``[h · w · c, features]`` are
      ``[h, w, c, features]``, all others as they are.

    Raises:
      UserError: the model has no ``window``, or its dense layers were made for images of another shape.
    """
    name, shape = type(model).__name__, tuple(model.image_shape if image_shape is None else image_shape)
    if not hasattr(model, "window"):
        raise UserError(f"{name} cannot become fully convolutional: it has no field window, as models.names() have")
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        _, endpoints = jax.eval_shape(model.apply, variables, images)
    except ScopeParamShapeError as error:
        raise UserError(_misfit(name, shape)) from error
    result = model.clone(window=endpoints[list(model.strides)[-1]].shape[1:3])
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    slots = jax.eval_shape(result.init, keys, images)
    slots = {collection: slots[collection] for collection in variables}
    if any(jax.tree.leaves(jax.tree.map(lambda x, slot: x.size != slot.size, variables, slots))):
        raise UserError(_misfit(name, shape))
    return result, jax.tree.map(lambda x, slot: x.reshape(slot.shape), variables, slots)


def _misfit(name: str, shape: tuple[int, ...]) -> str:
    size = "×".join(map(str, shape))
    return f"this {name} has dense layers for images of another size than {size}: give the image_shape of its own"
