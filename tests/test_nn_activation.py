"""nn.activation: the rectifiers equal jax.nn's in value and gradient, and XLA keeps their results."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import compiler, nn

POINTS = jnp.array([-jnp.inf, -7.0, -0.0, 0.0, 1e-40, 3.0, 6.0, 9.0, jnp.inf])
PAIRS = ((nn.relu, jax.nn.relu), (nn.relu6, jax.nn.relu6))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_values_and_gradients_of_every_order_are_jax_nn_s(ours, theirs):
    for transform in (lambda f: f, jax.grad, lambda f: jax.grad(lambda y: jax.grad(f)(y) * y)):
        for x in POINTS:
            assert np.array_equal(transform(ours)(x), transform(theirs)(x), equal_nan=True), x
    assert jnp.isnan(ours(jnp.nan))
    assert ours(jnp.bfloat16(2)).dtype == jnp.bfloat16


def test_relu6_has_no_gradient_where_it_bends():
    assert jax.vmap(jax.grad(nn.relu6))(jnp.array([0.0, 6.0])).tolist() == [0, 0]


def test_a_chain_of_residual_blocks_is_not_computed_anew_by_each_block():
    """XLA's CPU compiler does so with max(x, 0), therefore nn.relu is not jax.nn.relu."""

    def widest(relu):
        def loss(x, kernels):
            for kernel in kernels:
                x = relu(x + x @ kernel)
            return x.sum()

        shapes = jax.ShapeDtypeStruct((512, 256), jnp.float32), [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 8
        options = compiler.options("cpu")
        text = jax.jit(jax.grad(loss, 1), compiler_options=options).lower(*shapes).compile().as_text()
        return max(len(set(re.findall(r"parameter\((\d+)\)", body))) for body in re.split(r"\n%fused", text)[1:-1])

    assert widest(jax.nn.relu) > widest(nn.relu) <= 4
