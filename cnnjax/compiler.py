"""Settings of XLA and of the memory allocator that make programs on CPUs faster; nothing here acts on import."""

import ctypes
import os
import sys
from pathlib import Path

import jax
import jaxlib


def options(platform: str | None = None) -> dict[str, str]:
    """``compiler_options`` for ``jax.jit`` on ``platform`` (None: that of the default device).

    On CPUs jaxlib 0.10 and 0.11 leave convolutions, products and reductions to YNNPACK, whose gradients are slow: they
    take a third of VGG-16's step. XLA refuses options that it does not know, so other versions get none.
    """
    platform = jax.default_backend() if platform is None else platform
    known = jaxlib.__version__.startswith(("0.10.", "0.11."))
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if known and platform == "cpu" else {}


def enable_cache() -> None:
    """Keeps compiled programs on disk, so that a script started again does not compile again.

    The folder is ``$JAX_COMPILATION_CACHE_DIR``, else ``~/.cache/cnnjax``; it may be removed at any time.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "cnnjax"))


# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def tune_malloc() -> bool:
    """Lets this process keep memory that it frees; False where the C library is not glibc.

    XLA allocates a program's temporary memory at each call. By default glibc gives it back to the system, which must
    clear it page by page the next time. With this setting a process holds its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
