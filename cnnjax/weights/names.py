"""A file's keys brought to those of a layout: prefixes of torch's wrappers, numbers of Keras' layers."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from cnnjax.types import UserError
from cnnjax.weights.formats.content import Tensor
from cnnjax.weights.formats.state_dicts import is_average
from cnnjax.weights.rules import Slot

# Names that Keras gives by itself, today and in its first version.
_NUMBERED = re.compile(r"((?:separable_?)?conv(?:olution)?2d|batch_?normalization)(?:_(\d{1,6}))?")


class Names(NamedTuple):
    """Arrays of a file by a layout's keys.

    Attributes:
      tensors: arrays by key; those that have no place in the layout keep their own.
      outside: keys that lack the prefix that the others have.
      notes: what was done, for the screen: ends of a sentence that begins with the path.
    """

    tensors: Mapping[str, Tensor]
    outside: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def unprefixed(tensors: Mapping[str, Tensor], targets: Collection[str], where: str) -> Names:
    """torch: arrays without the prefix that most of the layout's keys ``targets`` have in the file.

    Wrappers such as DataParallel, ``torch.compile`` and Lightning add one; the state dict of a part of a network, such
    as ``features``, lacks one. Of a network and its moving average (EMA) the average is taken if it is complete.

    Raises:
      UserError: there are other networks with these keys than one and its average.
    """
    # By the part that the file's keys lack: how many of the layout's keys follow each prefix.
    counts = {"": Counter(prefix for key in tensors for prefix in _prefixes(key, targets))}
    for part in sorted({target.partition(".")[0] + "." for target in targets}):
        within = {target.removeprefix(part) for target in targets if target.startswith(part)}
        counts[part] = Counter(prefix for key in tensors for prefix in _prefixes(key, within))
    part = max(counts, key=lambda each: max(counts[each].values(), default=0))
    prefix, most = max(counts[part].items(), key=lambda pair: (pair[1], -len(pair[0])), default=("", 0))
    if 2 * most <= min(len(targets), len(tensors)):  # the file is of another network
        return Names(tensors)
    networks = [other for other, count in counts[part].items() if 2 * count > most]
    if len(networks) == 1:
        return _under(tensors, prefix, part, drop=[]) if prefix or part else Names(tensors)
    averages = [other for other in networks if is_average(other)]
    plain = [other for other in networks if other not in averages]
    if len(averages) != 1 or len(plain) != 1:
        raise UserError(
            f"{where} holds {len(networks)} networks, under {', '.join(map(repr, networks[:5]))}: save one with torch, "
            f"{{k: v for k, v in state.items() if k.startswith({prefix!r})}}"
        )
    best, other = (averages[0], plain[0]) if counts[part][averages[0]] == most else (plain[0], averages[0])
    return _under(tensors, best, part, drop=[other])


def _prefixes(key: str, targets: Collection[str]) -> Iterator[str]:
    """Beginnings of a key after which one of ``targets`` follows."""
    start = 0
    while start >= 0:
        if key[start:] in targets:
            yield key[:start]
        start = key.find(".", start) + 1 or -1


def _under(tensors: Mapping[str, Tensor], prefix: str, part: str, drop: list[str]) -> Names:
    """Arrays with ``part`` for ``prefix``; those with one of ``drop`` are left out, others keep their keys."""
    inner = {part + key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
    rest = {key: x for key, x in tensors.items() if not key.startswith((prefix, *(each for each in drop if each)))}
    if "" in drop:
        rest = {key: x for key, x in rest.items() if key not in inner}
    # A key that both have would hide one of the two: the one outside is no key of the layout then.
    outside = {(f"(outside {prefix!r}) {key}" if key in inner else key): x for key, x in rest.items()}
    average = ", a moving average" if drop and is_average(prefix) else ""
    notes = [f"prefix {prefix!r} taken off{average}"] * bool(prefix)
    notes += [f"the network under {each!r} stays out" for each in drop]
    notes += [f"{part!r} put before its keys"] * bool(part)
    return Names({**inner, **outside}, frozenset(outside), tuple(notes))


def renumbered(tensors: Mapping[str, Tensor], slots: Mapping[str, Slot]) -> Names:
    """Keras: layers that Keras numbered from another start, such as ``conv2d_94``, by the layout's numbers.

    Keras counts the layers of a session, so those of a second model go on where the first ended; their order stays.

    Args:
      tensors: arrays of the file by ``layer/weight``.
      slots: slots by the layout's keys.
    """
    wanted, found = _numbers(slots), _numbers(tensors)
    changed: dict[str, str] = {}
    starts = []
    for kind, numbers in wanted.items():
        theirs = found.get(kind, [])
        if len(numbers) < 2 or numbers == theirs[: len(numbers)]:
            continue
        starting = range(len(theirs) - len(numbers) + 1)
        fitting = [at for at in starting if _fits(kind, numbers, theirs[at:], tensors, slots)]
        if len(fitting) == 1:
            ours = theirs[fitting[0] : fitting[0] + len(numbers)]
            changed |= {_layer(kind, a): _layer(kind, b) for a, b in zip(ours, numbers, strict=True)}
            starts.append(_layer(kind, ours[0]))
    if not changed:
        return Names(tensors)
    kept = {f"{changed[layer]}/{weight}": key for layer, weight, key in _split(tensors) if layer in changed}
    others = {key: x for key, x in tensors.items() if key.partition("/")[0] not in changed}
    free = {(key if key not in kept else f"(another) {key}"): x for key, x in others.items()}
    note = f"layers numbered from {' and '.join(starts)} are matched by their order"
    return Names({**{new: tensors[old] for new, old in kept.items()}, **free}, notes=(note,))


def _split(keys: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """(Layer, weight, key) of each key."""
    for key in keys:
        layer, _, weight = key.partition("/")
        yield layer, weight, key


def _layer(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


def _numbers(keys: Collection[str]) -> dict[str, list[int]]:
    """Kind of layer, such as ``conv2d`` → its numbers, ascending."""
    numbers = defaultdict(set)
    for layer, _, _ in _split(keys):
        if found := _NUMBERED.fullmatch(layer):
            numbers[found[1]].add(int(found[2] or 0))
    return {kind: sorted(of) for kind, of in numbers.items()}


def _fits(
    kind: str, numbers: list[int], theirs: list[int], tensors: Mapping[str, Tensor], slots: Mapping[str, Slot]
) -> bool:
    """True if the layers ``theirs`` have the arrays and shapes that those of ``numbers`` have in the layout."""
    pairs = {_layer(kind, a): _layer(kind, b) for a, b in zip(numbers, theirs, strict=False)}
    wanted = {f"{pairs[layer]}/{weight}": slots[key].shape for layer, weight, key in _split(slots) if layer in pairs}
    return all(key in tensors and sorted(tensors[key].shape) == sorted(shape) for key, shape in wanted.items())
