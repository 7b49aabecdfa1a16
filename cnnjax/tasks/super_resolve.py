"""Super-resolution: images of more pixels, for any model of ``models.super_resolution``.

Batches have ``image`` (uint8 [n, h, w, 3]; float in 0 … 1 in training) and ``target`` uint8 [n, h · f, w · f, 3].
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from cnnjax.metrics import restoration
from cnnjax.ops import resize
from cnnjax.tasks import Prepare
from cnnjax.types import Array, Batch, Example, Key, Picture, Prediction, PyTree, Rows, Sums, Task


def network(create: Callable[..., linen.Module], classes: Sequence[str], **fields: Any) -> linen.Module:
    """Network made by ``create``, which knows no classes; ``fields`` are fields of it."""
    return create(**fields)


def task(model: Any, prepare: Prepare, classes: Sequence[str] = ()) -> Task:
    """Super-resolution by ``model``, whose ``apply`` gives images in 0 … 1 and endpoints; the loss is the mean absolute
    error (Lim et al. 2017, sec. 3.2).

    Evaluation is on the luminance of images rounded to 8 bits, without ``model.factor`` pixels at the border, as the
    field's; beside it that of bicubic interpolation.
    """

    def loss_fn(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Sums]]:
        found, _ = model.apply(variables, batch["image"], train=True)
        each = jnp.abs(found - jnp.asarray(batch["target"], jnp.float32) / 255).mean((1, 2, 3))
        return each.mean(), ({}, {"loss": each.sum(), "count": jnp.float32(len(each))})

    def predict(variables: PyTree, images: Array) -> dict[str, Array]:
        found, _ = model.apply(variables, prepare(images), train=False)
        return {"image": _eight_bit(255 * found)}

    def eval_fn(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        images, target = batch["image"], batch["target"]
        bicubic = resize.bicubic(jnp.asarray(images, jnp.float32), target.shape[1:3])
        found = {"": predict(variables, images)["image"], "bicubic_": _eight_bit(bicubic)}
        true, rows = restoration.luminance(target), {}
        for name, each in found.items():
            for metric in (restoration.psnr, restoration.ssim):
                compare = jax.vmap(partial(metric, border=model.factor))
                rows[name + metric.__name__] = compare(restoration.luminance(each), true)
        return {"count": batch["example_mask"].sum()}, rows

    return Task(
        loss_fn=loss_fn,
        eval_fn=eval_fn,
        figures=figures,
        predict=predict,
        describe=lambda prediction, most: {"size": [prediction["image"].shape[1], prediction["image"].shape[0]]},
        draw=draw,
        best="psnr",
    )


def _eight_bit(images: Array) -> jax.Array:
    return jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)


def figures(sums: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean ``loss`` in training; in evaluation means over images: ``psnr`` in dB, ``ssim``, ``bicubic_psnr``,
    ``bicubic_ssim``, and ``gain``, the difference of both PSNRs."""
    if not rows:
        return {"loss": float(sums["loss"]) / float(sums["count"])}
    means = {name: float(np.mean(x, dtype=np.float64)) for name, x in rows.items()}
    return {**means, "gain": means["psnr"] - means["bicubic_psnr"]}


def draw(example: Example, prediction: Prediction) -> Picture:
    """Large image."""
    return Picture(np.asarray(prediction["image"]))
