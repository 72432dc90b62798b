"""JAX: `lax.scan` over all batches of a round in one compiled call, buffers donated."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.setting import DROPOUT, HIDDEN, LR, MOMENTUM, HeadSetting

Tree = Any
EPS, BN_MOMENTUM = 1e-5, 0.1


def make(setting: HeadSetting) -> Callable[[np.ndarray], list[float]]:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_prng_impl", "rbg")  # the fast generator of JAX's documentation
    rows, targets = jnp.asarray(setting.rows()), jnp.asarray(setting.targets().astype(np.int32))

    def batch_norm(x: Tree, p: Tree, running: Tree) -> tuple[Tree, Tree]:
        mean, var = x.mean(0), x.var(0)
        unbiased = var * x.shape[0] / (x.shape[0] - 1)
        kept = jax.tree.map(lambda old, new: old + BN_MOMENTUM * (new - old), running, {"mean": mean, "var": unbiased})
        return (x - mean) * jax.lax.rsqrt(var + EPS) * p["gamma"] + p["beta"], jax.lax.stop_gradient(kept)

    def dropout(x: Tree, key: Tree, p: float) -> Tree:
        return jnp.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0)

    def loss_of(params: Tree, running: Tree, x: Tree, y: Tree, key: Tree) -> tuple[Tree, Tree]:
        keys, kept = jax.random.split(key), []
        for i, p in enumerate(params):
            x, stats = batch_norm(x, p, running[i])
            x = dropout(x, keys[i], DROPOUT[i]) @ p["weight"] + p["bias"]
            kept.append(stats)
            if i == 0:
                x = jax.nn.relu(x)
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean(), kept

    def step(state: Tree, index: Tree) -> tuple[Tree, Tree]:
        params, velocity, running, key = state
        key, own = jax.random.split(key)
        x, y = rows[index].astype(jnp.float32), targets[index]
        (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(params, running, x, y, own)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - LR * v, params, velocity)
        return (params, velocity, running, key), loss

    scan = jax.jit(lambda state, order: jax.lax.scan(step, state, order), donate_argnums=0)
    state = _initial_state(jax, jnp, [setting.columns, HIDDEN, setting.classes])

    def run(order: np.ndarray) -> list[float]:
        nonlocal state
        state, losses = scan(state, order.reshape(-1, setting.batch).astype(np.int32))
        found: list[float] = np.asarray(losses).tolist()
        return found

    return run


def _initial_state(jax: Any, jnp: Any, widths: list[int]) -> Tree:
    params, running = [], []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        weight = jax.random.normal(jax.random.key(i), (n_in, n_out)) * np.sqrt(2 / n_in)
        params.append({"gamma": jnp.ones(n_in), "beta": jnp.zeros(n_in), "weight": weight, "bias": jnp.zeros(n_out)})
        running.append({"mean": jnp.zeros(n_in), "var": jnp.ones(n_in)})
    return params, jax.tree.map(jnp.zeros_like, params), running, jax.random.key(9)
