"""Compiler options, the compilation cache and the allocator."""

import os
import subprocess
import sys

import jax
import jaxlib
import numpy as np
import pytest

from cnnjax import compiler


def run(code, tmp_path, **environment):
    env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_options_are_known_to_this_version_and_change_no_result():
    x = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    got = jax.jit(lambda x: x @ x.T, compiler_options=compiler.options())(x)
    np.testing.assert_allclose(got, x @ x.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "known"), [("0.10.2", True), ("0.11.0", True), ("0.12.1", False), ("0.9.9", False)]
)
def test_only_versions_that_know_the_option_get_it(monkeypatch, version, known):
    monkeypatch.setattr(jaxlib, "__version__", version)
    assert bool(compiler.options("cpu")) == known
    assert compiler.options("cuda") == compiler.options("tpu") == {}


CACHED = """
import jax, sys
from cnnjax import compiler
compiler.enable_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1.0)
"""


def test_programs_are_kept_for_the_next_run(tmp_path):
    run(CACHED, tmp_path)
    assert list((tmp_path / ".cache" / "cnnjax").iterdir())


def test_the_users_folder_overrules_ours(tmp_path):
    run(CACHED, tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert list((tmp_path / "mine").iterdir())
    assert not (tmp_path / ".cache").exists()


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs glibc")
def test_tuned_malloc_keeps_what_is_freed(tmp_path):
    code = """
import resource
from cnnjax import compiler
size = 50_000_000
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    len(b"x" * size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
plain = faults()
assert compiler.tune_malloc()
faults()
print(plain, faults())
"""
    plain, tuned = map(int, run(code, tmp_path).split())
    assert plain > 1000 > 10 * tuned
