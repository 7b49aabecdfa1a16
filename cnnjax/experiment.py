"""Opening and closing of a run: mesh, data, folder, evaluation, summary, network, figures, tables."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from flax import linen
from jax.sharding import Mesh

from cnnjax import compiler, fit, optim, plot, report, serving, settings, sharding, train, weights
from cnnjax.data import augment, fingerprint, pipeline, screening, sources, targets
from cnnjax.data.catalog import Splits
from cnnjax.data.transforms import Transform
from cnnjax.tasks import Prepare
from cnnjax.tasks.classify import unit
from cnnjax.types import Batch, Key, PyTree, Task, UserError
from cnnjax.weights.hub import checksum

Config = TypeVar("Config", bound=Any)
SMOKE_EXAMPLES = 64
SHOWN_CLASSES = 20
PICTURED = 24  # examples in one figure


def resolve(config: Config, name: str) -> Config:
    """Config whose numbers are checked and that has a run folder: the one given, else ``runs/NAME-TIME``.

    Raises:
      UserError: a number is out of its range; the run to go on from is none, or the run itself; several processes have
        no run folder, or different settings.
    """
    settings.check(config)
    config = settings.expanded(config)
    flat, free = settings.flat(config), settings.noted(config, settings.MAY_DIFFER)
    sharding.check_same({name: x for name, x in flat.items() if name not in free or name == "run_dir"})
    if origin := flat.get("continue_from"):
        report.read_config(Path(origin))
        if config.output.run_dir and Path(origin).resolve() == config.output.run_dir.resolve():
            raise UserError(f"{origin} cannot go on from itself: leave out --continue-from, or give another --run-dir")
    if config.output.run_dir is not None:
        return config
    if jax.process_count() > 1:
        raise UserError("give a run of several processes one --run-dir that all of them see")
    return settings.change(config, run_dir=Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")


def smoke(config: Config, batch_size: int) -> Config:
    """Config of a small transfer learning: a tiny base (for random weights), one epoch per phase, every step logged."""
    phases = tuple(replace(phase, epochs=1) for phase in config.phases)
    return settings.change(config, weights=settings.SMOKE, file=None, phases=phases, batch_size=batch_size, log_every=1)


def mesh(batch_size: int, accumulate: int = 1, *, tune_malloc: bool = False) -> Mesh:
    """Mesh of all devices.

    Args:
      tune_malloc: see ``compiler.tune_malloc``.

    Raises:
      UserError: batches of ``batch_size`` cannot be split over them.
    """
    if tune_malloc:
        compiler.tune_malloc()
    result = sharding.make_mesh()
    sharding.check_batch(batch_size, result, accumulate)
    return result


def load(
    splits: Splits,
    reading: settings.Reading,
    transform: Transform | None,
    *,
    smoke: bool = False,
    keep: Collection[str] = (),
) -> Splits:
    """Splits ready for training and evaluation: checked, transformed, and in memory where they fit.

    Args:
      transform: brings every image to one shape; None: they have one.
      smoke: take a few examples of each split.
      keep: splits to leave as they are, because their images are cropped at random each time, or prepared later.

    Raises:
      UserError: images that cannot be used (unless they are skipped), or differ in shape.
    """
    parts = splits.given
    if smoke:
        parts = {part: _few(source) for part, source in parts.items()}
    parts = screening.screened(parts, checks(), skip=reading.skip_corrupt)
    for part, source in parts.items():
        if part not in keep:
            source = source if transform is None else sources.Mapped(source, transform)
            parts[part] = sources.in_memory_if_small(source, reading.in_memory_bytes)
    return replace(splits, **parts)


def _few(source: sources.Source) -> sources.Source:
    return sources.Subset(source, np.random.default_rng(0).permutation(len(source))[:SMOKE_EXAMPLES])


def checks() -> Path:
    """Folder that keeps verdicts on image files, see ``checking.verdicts``; it may be removed at any time."""
    return checksum.cache_folder() / "checked"


def augmentation(
    op: augment.Op, prepare: Prepare | None = None, mixing: settings.Mixing | None = None, classes: int = 0
) -> Callable[[Key, Batch], Batch]:
    """(key, batch of uint8 images) → augmented batch for ``train.Plan``; a batch of features stays as it is.

    Args:
      op: changes each example.
      prepare: images in 0 … 255 → what the model takes; None: images in 0 … 1.
      mixing: mixes pairs of examples.
      classes: number of classes of the labels to mix.
    """

    def apply(key: Key, batch: Batch) -> Batch:
        if "image" not in batch:
            return batch
        each, pairs = (key, key) if mixing is None else jax.random.split(key)
        batch = augment.per_example(op, each, {**batch, "image": unit(batch["image"])})
        batch = batch if mixing is None else mixing.apply(pairs, batch, classes)
        return batch if prepare is None else {**batch, "image": prepare(255 * batch["image"])}

    return apply


@contextmanager
def opened(config: Any, facts: Mapping[str, Any] | Splits) -> Iterator[report.Run]:
    """Run folder of a config, locked; one that holds another run is refused.

    Args:
      facts: other values that must be the same to resume; from splits, their numbers of examples, their classes and
        their fingerprint; the splits are also printed.
    """
    if isinstance(facts, Splits):
        show_splits(facts)
        parts = facts.given
        counts = {part: len(source) for part, source in parts.items()}
        data = fingerprint.combined(fingerprint.of_source(source) for source in parts.values())
        facts = {**counts, "classes": list(facts.train.classes), "data": data}
    flat = settings.flat(config)
    free, located = (settings.noted(config, note) for note in (settings.MAY_DIFFER, settings.LOCATES))
    defaults = settings.defaults(config)
    with report.Run(config.output.run_dir, flat, facts, may_differ=free, located=located, defaults=defaults) as run:
        if flat.get("continue_from") and flat["continue_with"] == "all":
            run.take_over(Path(flat["continue_from"]))
        yield run


def initial(loop: settings.Loop, model: linen.Module, variables: PyTree, shape: tuple[int, int, int]) -> PyTree:
    """Variables that training starts from: ``variables``, or the network of the run whose weights it goes on with.

    Args:
      shape: height, width and channels of the images.

    Raises:
      UserError: the network of that run does not fit ``model``.
    """
    if loop.continue_from is None or loop.continue_with == "all":
        return variables
    return serving.load_variables(loop.continue_from, model, shape)


def show_splits(splits: Splits) -> None:
    """Prints the number of images in each split, in all and of each class (or its boxes, where images have any number),
    or the names of classes that are many or not counted."""
    classes, columns, boxes, counted = splits.train.classes, {}, False, False
    for part, source in splits.given.items():
        labels = sources.known_labels(source)
        counts = targets.class_counts(source) if labels is None else np.bincount(labels, minlength=len(classes))
        boxes |= labels is None and counts is not None
        counted |= counts is not None
        columns[part] = [*(["?"] * len(classes) if counts is None else counts.tolist()), len(source)]
    rows = [
        {"class": name, **{part: str(counts[place]) for part, counts in columns.items()}}
        for place, name in enumerate([*classes, "images" if boxes else f"all {len(classes)}"])
    ]
    short = len(classes) > SHOWN_CLASSES or not counted
    report.table("boxes and images" if boxes else "images", rows[-1:] if short else rows)
    if short:
        report.say(f"classes: {', '.join(classes[:SHOWN_CLASSES])}{', …' * (len(classes) > SHOWN_CLASSES)}")
    for part, column in columns.items():
        if lacking := [name for name, count in zip(classes, column, strict=False) if count == 0]:
            report.say(f"{part} has no image of {', '.join(lacking[:SHOWN_CLASSES])}: it says nothing of them")


class Outcome(NamedTuple):
    """Evaluation of a split.

    Attributes:
      figures: flat, each with the name of the split before its own.
      sums: totals of the task's sums.
      rows: the task's rows, one for each example in order.
    """

    figures: dict[str, float]
    sums: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]


Scorer = Callable[[PyTree, sources.Source, str], Outcome]
"""(variables, split, its name) → evaluation."""


def scorer(task: Task, mesh: Mesh, batch_size: int, threads: int = 8) -> Scorer:
    """Evaluation by ``task`` in batches of ``batch_size``, read by ``threads``; compiled once for all splits."""
    step = train.make_eval_step(task.eval_fn, mesh)

    def score(variables: PyTree, source: sources.Source, split: str) -> Outcome:
        batches = pipeline.eval_batches(source, batch_size, threads=threads)
        sums, rows = train.evaluate(step, variables, batches, mesh)
        return Outcome({f"{split}/{name}": x for name, x in task.figures(sums, rows).items()}, sums, rows)

    return score


def rows(eval_fn: Callable, variables: PyTree, source: sources.Source, batch_size: int) -> dict[str, np.ndarray]:
    """Rows of ``eval_fn`` for every example of a source, in order, with a progress bar.

    Raises:
      UserError: the batch size does not divide over the devices.
    """
    devices = mesh(batch_size)
    steps = -(-len(source) // batch_size)
    # Batches as small as possible for their number: few rows only fill the last one.
    batch_size = -(-len(source) // (steps * devices.size)) * devices.size
    batches = report.progress(pipeline.eval_batches(source, batch_size), steps, batch_size)
    step = train.make_eval_step(eval_fn, devices)
    return train.evaluate(step, sharding.place(variables, devices), batches, devices)[1]


def trained(
    plan: train.Plan,
    initial: PyTree,
    batches: settings.Batches,
    valid: sources.Source,
    score: Scorer,
    mesh: Mesh,
    run: report.Run,
    loop: settings.Loop,
    batch_size: int,
) -> tuple[PyTree, dict[str, float]]:
    """Trains by ``plan`` and evaluates ``valid`` after each epoch; returns variables and scores as ``kept``.

    Args:
      initial: as for ``fit.epochs``.
      batches: step → batches from there on.
    """
    for epoch in fit.epochs(plan, initial, batches, mesh, run, loop.fit_settings(batch_size)):
        epoch.report(score(epoch.variables, valid, "valid").figures, best=f"valid/{plan.task.best}")
    return kept(loop.keep, plan, initial, mesh, run, epoch)


def kept(
    keep: Literal["best", "last"], plan: train.Plan, initial: PyTree, mesh: Mesh, run: report.Run, last: fit.Epoch
) -> tuple[PyTree, dict[str, float]]:
    """Variables to test and to keep after training, with their validation figures and their ``steps``.

    Args:
      keep: the epoch with the best validation figure, or the last one.
      initial: as for ``fit.epochs``.
      last: epoch that ended the training.
    """
    if keep == "last":
        return last.variables, {**(last.scores or {}), "steps": last.step}
    step, variables = fit.best(plan, initial, mesh, run)
    return variables, {**run.scores(step), "steps": step}


Drawings = Mapping[str, Callable[[], plot.Figure | Iterable[plot.Figure]]]


def finish(run: report.Run, summary: Mapping[str, float], served: serving.Served | None, drawings: Drawings) -> None:
    """Writes summary.json, the network with its card, and then figures, the training curves among them.

    A figure that cannot be drawn is a warning: by then the results are safe.

    Args:
      served: network to keep; None: it cannot be served.
      drawings: file name → function that draws the figure.
    """
    run.finish(summary)
    if served is not None:
        serving.save(run.dir, served._replace(card=replace(served.card, origin=_origin(run.config))))
    draw(run, {"curves.png": lambda: plot.curves(run.records()), **drawings})


def _origin(config: Mapping[str, Any]) -> str | None:
    """Run that the settings of another begin from, and what was taken of it."""
    if origin := config.get("continue_from"):
        return f"{origin}: its {'network' if config['continue_with'] == 'weights' else 'weights, optimizer and steps'}"
    base = config.get("weights")
    return f"{base}: its network without the top" if base and base not in weights.published() else None


def draw(run: report.Run, drawings: Drawings) -> None:
    """Writes figures into the run folder, several as a GIF; one that cannot be drawn is a warning."""
    for name, drawing in drawings.items() if run.writes else ():
        try:
            figure = drawing()
            if isinstance(figure, plot.Figure):
                plot.save(figure, run.dir / name)
            else:
                plot.save_animation(figure, run.dir / name)
        # matplotlib raises any exception.
        except Exception as error:
            print(f"warning: {name} is not drawn: {' '.join(str(error).split())[:200]}")


def examples(served: serving.Served, source: sources.Source) -> plot.Figure:
    """Figure of the first examples of a source with the truth and the network's prediction."""
    task = served.task
    few = [source[i] for i in range(min(PICTURED, len(source)))]
    images = np.stack([example["image"] for example in few])
    found = jax.device_get(jax.jit(task.predict)(served.variables, images))
    drawn = [task.draw(example, {name: x[i] for name, x in found.items()}) for i, example in enumerate(few)]
    return plot.pictures(drawn)


def show_plan(plan: train.Plan, params: PyTree, run: report.Run) -> None:
    """Prints phases and learning rates of each group of parameters, and draws them as plan.png in the run folder."""
    paths = optim.flatten(params)
    rows, curves, begin = [], {}, 0
    for phase in plan.phases:
        index = optim.match(list(paths), phase.rules)
        for i, (pattern, schedule) in enumerate(phase.rules):
            size = sum(leaf.size for path, leaf in paths.items() if index[path] == i)
            rates = "frozen" if schedule is None else f"{schedule(0):.2g} … {schedule(phase.steps - 1):.2g}"
            rows.append({"phase": phase.name, "parts": pattern, "parameters": f"{size:,}", "learning rate": rates})
            if schedule is not None:
                steps = np.unique(np.linspace(0, phase.steps - 1, 200, dtype=int))
                curve = np.array([float(schedule(step)) for step in steps])
                curves[f"{phase.name}: {pattern}"] = (begin + steps, curve)
        begin += phase.steps
    report.table("plan", rows)
    draw(run, {"plan.png": lambda: plot.lines(curves, "step", "learning rate", log=True)})


def conclude(
    run: report.Run, facts: Mapping[str, str], tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> None:
    """Prints the closing tables: ``tables`` by title, then ``facts`` with the run folder."""
    for title, rows in (tables or {}).items():
        report.table(title, rows)
    lines = {**facts, "results in": str(run.dir)}
    report.table("result", [{"": name, " ": value} for name, value in lines.items()])
