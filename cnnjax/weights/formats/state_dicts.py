"""State dicts in what training loops save: found by name, and the moving average (EMA) preferred."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnjax import text
from cnnjax.types import UserError
from cnnjax.weights.formats.pickle_values import Inert, TorchTensor

SAVE_AGAIN = "load it with torch and save it anew: torch.save(model.state_dict(), ...)"
# Names of the network among what else is saved, the first first.
_NAMES = ("state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net", "network", "weights")
_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")
_TRAINING = re.compile(r"optim|sched|scaler|callback|loops|criterion|loss")  # what else is saved, some with tensors
_DEEPEST = 3  # as {"ema": {"model": {"state_dict": …}}}

State = Mapping[str, TorchTensor]


def is_average(name: str) -> bool:
    """True for a name or prefix of averaged weights, such as ``model_ema``."""
    return _AVERAGE.search(name.lower()) is not None


def chosen(saved: Any, path: Path) -> tuple[State, tuple[str, ...]]:
    """The state dict in a saved object, and what there is to say about the choice.

    Of several the moving average is taken, which evaluation uses, if it is as complete as the others; else the one with
    the most usual name.

    Args:
      saved: the object, as ``pickle.load`` gives it.
      path: of the file, for messages.

    Raises:
      UserError: there is none, or several of unknown names.
    """
    if type(saved) is not dict:
        raise UserError(f"{path} holds a {_kind(saved)}, expected a state dict: {SAVE_AGAIN}")
    found = dict(_found(saved))
    if not found and (state := _tensors(saved)):
        left = ", ".join(repr(text.one_line(key[:80])) for key in saved.keys() - state.keys())
        return state, (f"{left} beside its tensors stays out",)
    if not found:
        key, value = next(((k, v) for k, v in _values(saved) if not _is_entry(k, v)), ("", None))
        shown = f"{text.one_line(str(key)[:80])!r}, a {_kind(value)}" if saved else "an empty dict"
        raise UserError(f"{path} holds {shown}, expected tensors by name: {SAVE_AGAIN}")
    best = _best(found, path)
    if best == "":
        return found[best], ()
    others = [repr(name) for name in found if name != best]
    average = ", a moving average" if is_average(best) else ""
    rest = f"; its {', '.join(others)} stays out" if others else ""
    return found[best], (f"the weights are its {best!r}{average}{rest}",)


def _found(saved: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """(Dotted name, state dict) for ``saved`` itself or for those in it."""
    if saved and all(_is_entry(key, value) for key, value in saved.items()):
        yield name, saved
    elif depth < _DEEPEST:
        for key, value in saved.items():
            if type(key) is str and type(value) is dict and not _TRAINING.search(key.lower()):
                yield from _found(value, f"{name}.{key}" if name else key, depth + 1)


def _tensors(saved: Mapping[Any, Any]) -> State:
    """The tensors among numbers and texts by name; empty where there is anything else."""
    plain = (int, float, bool, str, type(None), Inert)
    usual = all(type(key) is str and type(value) in (TorchTensor, *plain) for key, value in saved.items())
    return {key: value for key, value in saved.items() if type(value) is TorchTensor} if usual else {}


def _is_entry(key: Any, value: Any) -> bool:
    return type(key) is str and type(value) is TorchTensor


def _values(saved: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The entries of ``saved``, or of the dict in it that is most likely meant as a state dict."""
    inner = next((saved[name] for name in _NAMES if type(saved.get(name)) is dict), saved)
    yield from inner.items()


def _best(found: Mapping[str, State], path: Path) -> str:
    if len(found) == 1:
        return next(iter(found))
    most = max(len(state) for state in found.values())
    averages = [name for name, state in found.items() if is_average(name) and len(state) >= most - 1]
    plain = [name for usual in _NAMES for name in found if name == usual]
    for names in (averages, plain):
        if names and (len(names) == 1 or names is plain):
            return names[0]
    listed = ", ".join(repr(text.one_line(name[:80])) for name in list(found)[:8])
    raise UserError(f"{path} holds {len(found)} state dicts, {listed}: keep one, torch.save(saved[NAME], ...)")


def _kind(value: Any) -> str:
    return value.name if type(value) is Inert else type(value).__name__
