"""The feature maps of a backbone that detectors and segmenters build on."""

from collections.abc import Mapping, Sequence

from cnnjax.types import Array, Backbone, UserError


def pyramid(model: Backbone, endpoints: Mapping[str, Array], strides: Sequence[int]) -> tuple[Array, ...]:
    """The deepest feature map of each total stride.

    Args:
      model: a network with these ``endpoints``; it says in ``model.strides`` which of them has which stride.
      endpoints: feature maps by name, ``[n, h, w, c]``, as ``model.apply`` returns them.
      strides: total strides in pixels, such as ``(8, 16, 32)``.

    Returns:
      One feature map per stride, ``[n, about h / stride, about w / stride, c]``, in the order of ``strides``.

    Raises:
      UserError: the model has no endpoint of such a stride; the message lists the strides that it has.
    """
    deepest = {stride: name for name, stride in model.strides.items()}  # of several with one stride the last stays
    if missing := [stride for stride in strides if stride not in deepest]:
        raise UserError(
            f"{type(model).__name__} has no feature map of stride {', '.join(map(str, missing))}: "
            f"choose among {', '.join(map(str, deepest))}"
        )
    return tuple(endpoints[deepest[stride]] for stride in strides)
