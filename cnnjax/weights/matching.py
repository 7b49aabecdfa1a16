"""Matching of a file's arrays with those of a model: which layout, which of its keys, and what is left out."""

from collections.abc import Mapping
from typing import NamedTuple

from cnnjax.types import UserError
from cnnjax.weights import diagnosis, fitting, in_order, layouts, own, rules
from cnnjax.weights.fitting import Wanted
from cnnjax.weights.formats.content import Content
from cnnjax.weights.layouts import Layout
from cnnjax.weights.names import Names
from cnnjax.weights.rules import Filling, Place


class Matched(NamedTuple):
    """Fillings of the slots by keys of ``content``, whose ``notes`` say what was chosen and left out."""

    plan: Mapping[Place, Filling]
    content: Content


def match(content: Content, wanted: Wanted, where: str) -> Matched:
    """Fillings from ``content`` for every slot that is not optional.

    Args:
      content: arrays of the file.
      wanted: what the model takes.
      where: name of the file, for messages.

    Raises:
      UserError: a key is left over, a slot is unfilled or of another shape or type, or the model would compute
        other results with these weights than the publisher's.
    """
    if content.names == "darknet":
        return Matched(*in_order.match(content, wanted, where))
    layout = None
    if content.names == "cnnjax":
        own.check(content, wanted.model, where)
        plan = {path: Filling("/".join(path)) for path in wanted.whole.slots}
        found = fitting.fit(content.tensors, plan, wanted.whole, wanted.optional)
    else:
        kind = "keras" if content.names == "keras" else "torch"
        label, layout, by_layout = _layout(content, kind, wanted, where)
        content = content._replace(tensors=by_layout.tensors, notes=(*content.notes, *by_layout.notes))
        try:
            plan = rules.plan(content.tensors, layout, kind, wanted.whole)
        except rules.NoRuleError as error:
            raise UserError(
                f"{where}: {label}'s weights have no {error} of this {type(wanted.model).__name__}: it is another "
                f"model's file{diagnosis.family(content, kind, wanted.model)}"
            ) from error
        found = fitting.fit(content.tensors, plan, wanted.whole, wanted.optional, layout.unused)
        found, notes = fitting.with_head(content, wanted, found, layout, kind)
        content = content._replace(notes=(*content.notes, *notes))
    if not found.exact:
        raise UserError(diagnosis.message(content, wanted, found, layout, where))
    return Matched({path: it for path, it in found.plan.items() if path not in found.optional}, content)


def _layout(content: Content, kind: str, wanted: Wanted, where: str) -> tuple[str, Layout, Names]:
    """The layout with most of the file's keys, its name, and the arrays by its keys.

    Raises:
      UserError: the model has none for this kind of keys, or its fields are not those that the layout wants.
    """
    model, table = wanted.model, layouts.for_model(wanted.model)
    known = layouts.with_keys_of(kind, table)
    if not known:
        raise UserError(
            f"{where}: a {content.kind} with {kind}'s names, which {type(model).__name__} has no rules for "
            f"(it knows the layouts: {', '.join(table) or 'none'}){diagnosis.family(content, kind, model)}"
        )
    found = {x: fitting.named(content.tensors, layout, kind, wanted.whole, where) for x, layout in known.items()}
    best = max(found, key=lambda label: (found[label][1], -len(found[label][0].notes)))
    layout, (by_layout, used) = known[best], found[best]
    # Where the layout knows few of the keys, the file is of another family, and the lists of the error say more.
    if 2 * used > min(len(content.tensors), len(wanted.whole.slots)) and (
        unlike := {name: value for name, value in layout.fields.items() if getattr(model, name) != value}
    ):
        want = ", ".join(f"{name}={value!r}" for name, value in unlike.items())
        have = ", ".join(f"{name}={getattr(model, name)!r}" for name in unlike)
        variant = own.changed(model, unlike)
        hint = f"; it is of {variant}" if variant else ""
        wants = f"{where}: {best}'s weights want a {type(model).__name__} with {want}"
        raise UserError(f"{wants}, this one has {have}{hint}")
    return best, layout, by_layout
