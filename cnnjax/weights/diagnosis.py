"""Messages about a file that does not fit a model: the likeliest cause and its cure first, then lists of both sides."""

import re
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as linen
import numpy as np

from cnnjax.weights import fitting, layouts, own, rules
from cnnjax.weights.fitting import Fit, Wanted
from cnnjax.weights.formats.content import Content
from cnnjax.weights.layouts import Layout

LINES = 12  # of a message at most
_WIDTHS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # that publishers of MobileNets offer
_DENSE_INPUT = re.compile(r"[\w/]+/kernel: \[\d+, (\d+)\], in the file .* (\[\d+, \1\]|\[\1, \d+\])$")


def message(content: Content, wanted: Wanted, found: Fit, layout: Layout | None, where: str) -> str:
    """The message for a fit that is not exact; of weights that cnnjax saved without ``layout``."""
    slots, tensors = wanted.whole.slots, content.tensors
    unfilled = [
        f"{'/'.join(path)} {list(slots[path].shape)}" + (f" (their {found.plan[path].key})" if layout else "")
        for path in found.unfilled
    ]
    left = [f"{key} {list(tensors[key].shape)}" for key in found.left]
    cause = next(_causes(content, wanted, found, layout), "")
    head = f"{where}: this {content.kind} does not fit {own.name(wanted.model)}{cause}"
    parts = {
        "in the model, not in the file": unfilled,
        "in the file, not in the model": left,
        "unlike": list(found.wrong.values()),
    }
    return head + _lists({title: lines for title, lines in parts.items() if lines})


def _causes(content: Content, wanted: Wanted, found: Fit, layout: Layout | None) -> Iterator[str]:
    """The likely causes, each with its cure, the likeliest first."""
    kind = "keras" if content.names == "keras" else "torch"
    body, used = wanted.body(), sum(filling.key in content.tensors for filling in found.plan.values())
    in_head = body.isdisjoint((*found.unfilled, *found.wrong))
    if layout is not None and 2 * used > min(len(content.tensors), len(body)):
        if not in_head or any(fitting.of_body(key, layout, kind, wanted, found) for key in found.left):
            yield from _variants(content, wanted, found, kind)
        elif found.left and not found.unfilled and not found.wrong:
            yield ': it holds more than the model; head="new" or num_classes=None leave it out'
    if found.unfilled and not found.wrong and all(path[1].startswith("aux") for path in found.unfilled):
        yield "; it has no auxiliary head: create the model with aux=False"
    if in_head:
        yield from _head(content, wanted, found, kind)
    if found.wrong and not found.unfilled and not found.left and all(map(_DENSE_INPUT.match, found.wrong.values())):
        yield ", whose dense layers depend on the size of images: give its image_size="
    if layout is not None:
        yield from filter(None, [family(content, kind, wanted.model)])


def _head(content: Content, wanted: Wanted, found: Fit, kind: str) -> Iterator[str]:
    """The ways on where only the head does not fit."""
    classes = getattr(wanted.model, "num_classes", None)
    both = f'head="new" starts a head of {classes} classes, num_classes=None leaves it out'
    theirs = _file_classes(content, wanted, found, kind)
    if theirs is not None and theirs != classes:
        yield f" with num_classes={classes}: its head has {theirs} classes: give num_classes={theirs}; or {both}"
    elif found.unfilled and not found.left and not found.wrong:
        yield f": it has no head; {both}"
    elif any(layer.startswith("global_max_pooling") for layer in content.plain):
        yield f": its head follows a GlobalMaxPooling2D, where this model averages; {both}"
    elif found.unfilled:
        yield f": its head is another than this model's; {both}"


def _file_classes(content: Content, wanted: Wanted, found: Fit, kind: str) -> int | None:
    """The number of classes of the file's head; None if it has none, or not one that shows it."""
    biases = [path for path in found.wrong if path[1] == "head" and path[-1] == "bias"]
    if not biases:
        head = fitting.own_head(content, found, kind)
        return content.tensors[head[1]].shape[-1] if head else None
    key, classes = found.plan[biases[0]].key, getattr(wanted.model, "num_classes", None)
    if not key or classes is None:
        return None
    # A detector's layer has several values for a class, and some for none: another class shows how many.
    more = rules.structure(wanted.model.clone(num_classes=classes + 1), wanted.model.image_shape)
    ours, next_ours = (each.slots[biases[0]].shape[-1] for each in (wanted.whole, more))
    missing, rest = divmod(content.tensors[key].shape[-1] - ours, next_ours - ours)
    return None if rest or classes + missing < 1 else classes + missing


def _variants(content: Content, wanted: Wanted, found: Fit, kind: str) -> Iterator[str]:
    """The variant of the family that the file fits, if there is one."""
    mine = own.name(wanted.model)
    for name, create in own.variants(wanted.model).items():
        if name != mine and _fits(content, create(num_classes=None), wanted, kind):
            yield f": this is {name}, not {mine}"
    if hasattr(wanted.model, "width"):
        for width in _likely_widths(content, wanted, found):
            if _fits(content, wanted.model.clone(width=width, num_classes=None), wanted, kind):
                yield f" of width={wanted.model.width}: this is {mine} with width={width}"


def _fits(content: Content, model: linen.Module, wanted: Wanted, kind: str) -> bool:
    """True if the file has exactly the body of ``model``, which has no head."""
    known = layouts.with_keys_of(kind, layouts.for_model(model))
    agreeing = [x for x in known.values() if all(getattr(model, name) == value for name, value in x.fields.items())]
    return any(_fits_by(layout, content, model, wanted, kind) for layout in agreeing)


def _fits_by(layout: Layout, content: Content, model: linen.Module, wanted: Wanted, kind: str) -> bool:
    structure = rules.structure(model, wanted.model.image_shape)
    by_layout, used = fitting.named(content.tensors, layout, kind, structure, "")
    if 2 * used < len(structure.slots):
        return False
    plan = rules.plan(by_layout.tensors, layout, kind, structure)
    found = fitting.fit(by_layout.tensors, plan, structure, frozenset(), layout.unused)
    if found.unfilled or found.wrong:
        return False
    # The rest may be a head, of which the layout's rules for heads and the dense layers before them know the names.
    rows = [(ours, theirs) for ours, theirs in layout.keys if "head" not in ours and not ours.startswith("fc")]
    body = Wanted(model, structure, frozenset(), False, lambda: frozenset(structure.slots))
    return not any(fitting.of_body(key, layout._replace(keys=tuple(rows)), kind, body, found) for key in found.left)


def _likely_widths(content: Content, wanted: Wanted, found: Fit) -> Sequence[float]:
    """The two usual widths nearest to that of the file, which its kernels show; none where they cannot."""
    ratios = []
    for path in found.wrong:
        theirs = content.tensors.get(found.plan[path].key or "")
        if path[-1] == "var" and theirs is not None and theirs.shape:
            ratios.append(theirs.shape[0] / wanted.whole.slots[path].shape[0])
    if not ratios:
        return ()
    width = wanted.model.width * float(np.median(ratios))
    return sorted(_WIDTHS, key=lambda each: abs(each - width))[:2]


def family(content: Content, kind: str, model: linen.Module) -> str:
    """The classes of models whose publishers name layers as the file does, if they are others than this model's."""
    modules = {fitting.module(key, kind) for key in content.tensors}
    shares = {}
    for name, table in layouts.tables().items():
        known = layouts.with_keys_of(kind, table).values()
        patterns = [fitting.knows([theirs for _, theirs in layout.keys]) for layout in known]
        shares[name] = max((sum(map(bool, map(each.fullmatch, modules))) for each in patterns), default=0)
    most = max(shares.values(), default=0)
    best = [name for name, share in shares.items() if share == most]
    if 4 * most < 3 * len(modules) or type(model).__name__ in best:
        return ""
    return f"; its layers are named as those of a {' or '.join(best)}"


def _lists(parts: Mapping[str, Sequence[str]]) -> str:
    """Lists with a title each, of ``LINES`` - 1 lines at most in all."""
    room = (LINES - 1) // max(len(parts), 1) - 1
    text = ""
    for title, lines in parts.items():
        shown = list(lines) if len(lines) <= room else [*lines[: room - 1], f"and {len(lines) - room + 1} more"]
        text += f"\n  {title} ({len(lines)}):" + "".join(f"\n    {line}" for line in shown)
    return text
