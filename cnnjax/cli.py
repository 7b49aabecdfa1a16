"""Start of every script: reads the flags, and reports an error that the user can correct in one line."""

import io
import logging
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import tyro

from cnnjax import compiler, sharding, text
from cnnjax.types import UserError

Config = TypeVar("Config")


def main(
    run: Callable[[Config], object], config: type[Config], recipe: Callable[[Config], Config] | None = None
) -> None:
    """Reads the flags, joins a multi-process run if there is one, calls ``run(config)``.

    A ``UserError``, or an error of the system, becomes one line on stderr and exit status 2. Compiled programs are
    kept for the next run, see ``compiler.enable_cache``.

    Args:
      run: a script's main function.
      config: its settings; tyro makes the flags.
      recipe: config with the values of the flags → config whose values are used where no flag is given.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters that a name has
    # Orbax's threads log errors with tracebacks, which are also raised in the main thread.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Looking for a font with rare characters warns of every font without a normal weight.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="PIL")  # of damage that is an error, or does not matter
    compiler.enable_cache()
    try:
        settings = tyro.cli(config)
        if recipe is not None:
            settings = tyro.cli(config, default=recipe(settings))
        sharding.start()
        run(settings)
    except UserError as error:
        _end(str(error))
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError:
        _end("out of memory: smaller images (--image-size), batches or --in-memory-bytes need less")


def _end(message: str) -> None:
    print(f"error: {text.message(message)}", file=sys.stderr)
    sys.exit(2)
