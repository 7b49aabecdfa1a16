"""One contender of ``bench.py`` in a process of its own: builds a network, then runs steps on request.

    echo '{"steps": 3}' | python experiments/bench_worker.py '{"net": "fashion_cnn", "shape": [28, 28, 1], "batch": 64,
        "mode": "train", "contender": "torch", "tune_malloc": false}'

It prints one JSON line after the warm-up (``parameters``, ``compile_seconds``, ``temp_mib``), then one for each line
that it reads: ``{"steps": 3}`` gives the ``seconds`` of each step and ``peak_mib``. It ends with the end of its input.

Only its own contender imports a framework: the peak memory of a process is that of one framework.
"""

import functools
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bench_nets
import numpy as np

WARM_UP = 2  # steps that are not timed; torch and Keras compile in the first one
LEARNING_RATE, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Job:
    """Settings of one worker."""

    net: str
    """Name of bench_nets.ALL."""
    shape: tuple[int, int, int]
    """Height, width and channels of an image."""
    batch: int
    """Images per step."""
    mode: str
    """"train" or "infer"."""
    contender: str
    """Name of CONTENDERS."""
    tune_malloc: bool
    """Call cnnjax.compiler.tune_malloc first."""

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Random images [n, h, w, c] float32 and labels [n] or [n, h, w] below 10, equal for all contenders."""
        rng = np.random.default_rng(0)
        images = rng.normal(size=(self.batch, *self.shape)).astype(np.float32)
        labelled = (self.batch, *self.shape[:2]) if bench_nets.ALL[self.net].pixels else self.batch
        return images, rng.integers(0, 10, labelled)


class Ready(NamedTuple):
    """Network that is ready to run."""

    step: Callable[[], object]
    """Function that runs one step and returns when it is done."""
    parameters: int
    """Number of trainable values."""
    compile_seconds: float | None = None
    """Time to trace, lower and compile; None: the first step compiles, so it is its time less that of the second."""
    temp_mib: float | None = None
    """Temporary memory of the compiled step without the allocations of XLA's YNNPACK calls; None: not known."""


def flax_net(job: Job, options: Mapping[str, str], fold: bool) -> Ready:
    """Network of cnnjax as one jitted step, compiled with XLA's ``options``.

    ``fold`` folds BatchNorm into the convolutions for inference.
    """
    import jax

    from cnnjax import models, nn

    images, labels = map(jax.numpy.asarray, job.data())
    net = bench_nets.ALL[job.net]
    model = models.create(net.model or job.net, **net.fields)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    if job.mode == "infer" and fold:
        variables = nn.fold_batch_norm(model, variables, job.shape)
    started = time.perf_counter()
    if job.mode == "train":
        function, state = training_step(model, variables)
        program: Any = jax.jit(function, donate_argnums=0).lower(state, images, labels).compile({**options})
    else:
        logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0])
        program = logits.lower(variables, images).compile({**options})
    compile_seconds = time.perf_counter() - started

    def train() -> None:
        nonlocal state
        state, loss = program(state, images, labels)
        loss.block_until_ready()

    def infer() -> None:
        program(variables, images).block_until_ready()

    temporary = program.memory_analysis().temp_size_in_bytes / 2**20
    return Ready(train if job.mode == "train" else infer, parameters, compile_seconds, temporary)


def training_step(model: Any, variables: Any) -> tuple[Callable, Any]:
    """Function (state, images, labels) → (state, loss), and the first state.

    A state is variables, the optimizer's state and the number of the step.
    """
    import jax
    import optax

    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        variables, opt_state, number = state
        params, rest = variables["params"], {name: value for name, value in variables.items() if name != "params"}
        rngs = {"dropout": jax.random.fold_in(jax.random.key(0), number)}

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            (logits, _), new = model.apply(
                {"params": params, **rest}, images, train=True, mutable=list(rest), rngs=rngs
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (loss, new), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return ({"params": optax.apply_updates(params, updates), **new}, opt_state, number + 1), loss

    return step, (variables, optimizer.init(variables["params"]), jax.numpy.int32(0))


def cnnjax_cpu(job: Job) -> Ready:
    """cnnjax with its forms for CPUs and its compiler options."""
    from cnnjax import compiler

    return flax_net(job, compiler.options(), fold=True)


def lax(job: Job) -> Ready:
    """cnnjax with the operations of ``jax.lax`` and XLA's own options."""
    from cnnjax.ops.cpu import dispatch

    with dispatch.plain_everywhere():
        return flax_net(job, {}, fold=False)


def torch_eager(job: Job, compiled: bool = False) -> Ready:
    """torch, channels last; through torch.compile if ``compiled``."""
    import torch

    torch.manual_seed(0)
    images, labels = map(torch.from_numpy, job.data())
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    model = torch_net(job.net).to(memory_format=torch.channels_last).train(job.mode == "train")
    parameters = sum(leaf.numel() for leaf in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    whole = torch.compile(model) if compiled else model

    def run(images: Any) -> Any:
        found = whole(images)
        return found["out"] if isinstance(found, dict) else found

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run(images), labels).backward()
        optimizer.step()

    @torch.inference_mode()
    def infer() -> None:
        run(images)

    return Ready(train if job.mode == "train" else infer, parameters)


def torch_net(name: str) -> Any:
    """Network of torchvision or timm, torchvision's FCN head on its MobileNetV2, or the chapter's CNN."""
    from torch import nn

    if name == "fashion_cnn":
        layers: list[nn.Module] = []
        channels = 1
        for features, size, convs in ((64, 7, 1), (128, 3, 2), (256, 3, 2)):
            for _ in range(convs):
                layers += [nn.Conv2d(channels, features, size, padding="same"), nn.ReLU(inplace=True)]
                channels = features
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Flatten())
        for units_in, units in ((2304, 128), (128, 64)):
            layers += [nn.Linear(units_in, units), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        return nn.Sequential(*layers, nn.Linear(64, 10))
    torchvision = import_torchvision()
    if name == "xception":
        import timm

        return timm.create_model("legacy_xception")
    if name == "fcn_mobilenet_v2":
        from torchvision.models import segmentation

        features = torchvision.models.mobilenet_v2(weights=None).features
        base = torchvision.models._utils.IntermediateLayerGetter(features, {"18": "out"})
        return segmentation.fcn.FCN(base, segmentation.fcn.FCNHead(1280, 11))
    return getattr(torchvision.models, name)(weights=None)


def import_torchvision() -> Any:
    """Imports torchvision, even where its compiled operators do not load: no network here calls them."""
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms", "roi_align", "qroi_align", "roi_pool"):
            library.define(f"{name}(Tensor unused) -> Tensor")
        import torchvision

        torchvision.declared = library  # torch forgets the operators when this object dies
    return torchvision


def keras_jax(job: Job) -> Ready:
    """Keras on JAX, with its own variants, such as ResNet-50 with the stride in the 1×1 convolution."""
    import keras

    images, labels = job.data()
    keras.utils.set_random_seed(0)
    model = keras_net(job)
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    if job.mode == "train":
        return Ready(lambda: model.train_on_batch(images, labels), parameters)
    return Ready(lambda: model.predict_on_batch(images), parameters)


def keras_net(job: Job) -> Any:
    """Network of keras.applications, or the chapter's CNN, that returns logits."""
    import keras

    if name := bench_nets.KERAS[job.net]:
        return getattr(keras.applications, name)(weights=None, input_shape=job.shape, classifier_activation=None)
    layers: list[Any] = [keras.Input(job.shape)]
    for features, size, convs in ((64, 7, 1), (128, 3, 2), (256, 3, 2)):
        layers += [keras.layers.Conv2D(features, size, padding="same", activation="relu") for _ in range(convs)]
        layers.append(keras.layers.MaxPooling2D(2))
    layers.append(keras.layers.Flatten())
    for units in (128, 64):
        layers += [keras.layers.Dense(units, activation="relu"), keras.layers.Dropout(0.5)]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


CONTENDERS: dict[str, Callable[[Job], Ready]] = {
    "cnnjax": cnnjax_cpu,
    "lax": lax,
    "torch": torch_eager,
    "torch_compile": functools.partial(torch_eager, compiled=True),
    "keras": keras_jax,
}


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    # On Linux getrusage also counts the memory that the parent had when it started this process.
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def timed(step: Callable[[], object]) -> float:
    """Duration of one step in seconds."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main(job: Job) -> None:
    """Builds the network, warms it up, and answers until the input ends."""
    # Set before any framework is imported: all run on the CPU, and nothing was compiled by an earlier run.
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="false", KERAS_BACKEND="jax")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a framework's output goes to stderr, not between the answers
    if job.tune_malloc:
        from cnnjax import compiler

        compiler.tune_malloc()
    ready = CONTENDERS[job.contender](job)
    first, second = [timed(ready.step) for _ in range(WARM_UP)]
    compiling = max(first - second, 0.0) if ready.compile_seconds is None else ready.compile_seconds
    about = ready._asdict() | {"compile_seconds": compiling}
    del about["step"]
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        seconds = [timed(ready.step) for _ in range(json.loads(line)["steps"])]
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), file=answers, flush=True)


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
