"""The first layer's gradients and update, without the gradient of its input, which nothing needs.

With the layer's operand `s keep (gamma xhat + beta)`, s = 1 / (1 - p), and d the gradient of what the layer gives, let
`A = d.T @ (keep xhat)` and `M = d.T @ keep`: one product with the factors that `normalise` has made. Then
`dweight = s (gamma A + beta M)`, and, as dgamma and dbeta are sums over the columns of `(d @ weight) s keep`,
`dgamma = s sum of weight A` and `dbeta = s sum of weight M` over the outputs. Where nothing is dropped, every column of
M is the bias's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from fastclf.ops.arguments import DTYPES
from fastclf.ops.cuda.arguments import FirstLayer
from fastclf.ops.cuda.checks import addresses, check, check_columns
from fastclf.ops.registry import address, operation, stream_of
from fastclf.ops.sgd import DeviceGroups, UpdateTable


@operation
def first_gradient(layer: FirstLayer, dweight: Tensor, dgamma: Tensor, dbeta: Tensor) -> None:
    """Compute the first layer's gradients.

    Args:
        layer: the layer, and the products that its gradients are made of.
        dweight: `[O, F] float32`, is written.
        dgamma: `[F] float32`, is written, and so is dbeta.
        dbeta: see dgamma.
    """
    assert layer.products is not None
    n_in, scale = layer.weight.shape[1], 1 / (1 - layer.dropout.p)
    a = layer.products[:, :n_in]
    m = layer.dbias[:, None].expand_as(a) if layer.dropout.p == 0 else layer.products[:, n_in:]
    dweight.copy_(scale * (layer.gamma * a + layer.beta * m))
    dgamma.copy_(scale * (layer.weight * a).sum(0))
    dbeta.copy_(scale * (layer.weight * m).sum(0))


@first_gradient.check
def _(layer: FirstLayer, dweight: Tensor, dgamma: Tensor, dbeta: Tensor) -> None:
    (n_out, n_in), device = layer.weight.shape, layer.device
    width = n_in if layer.dropout.p == 0 else 2 * n_in
    assert layer.products is not None
    check("first_gradient", device, "layer.products", layer.products, (n_out, width))
    check("first_gradient", device, "layer.weight", layer.weight, (n_out, n_in))
    check("first_gradient", device, "layer.dbias", layer.dbias, (n_out,))
    check("first_gradient", device, "dweight", dweight, (n_out, n_in))
    columns = {"layer.gamma": layer.gamma, "layer.beta": layer.beta, "dgamma": dgamma, "dbeta": dbeta}
    check_columns("first_gradient", device, columns, n_in)


@first_gradient.cuda
def _(native: ModuleType, layer: FirstLayer, dweight: Tensor, dgamma: Tensor, dbeta: Tensor) -> None:
    native.first_gradient(
        **_layer_of(layer),
        **addresses({"dweight": dweight, "dgamma": dgamma, "dbeta": dbeta}),
        stream=stream_of(layer.device),
    )


def first_step(
    native: ModuleType,
    layer: FirstLayer,
    velocities: Sequence[Tensor],
    table: UpdateTable,
    groups: DeviceGroups,
    *,
    scale: Tensor,
    step_counter: Tensor,
    made_from: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Make a step of SGD for the first layer and for all tensors of a table in one launch.

    Args:
        native: the module whose kernel runs.
        layer: the layer; its parameters are updated by the gradients of `first_gradient`, as tensors of group 0.
        velocities: of weight, gamma and beta.
        table: all other tensors.
        groups: see `UpdateTable.step`, and so for the others.
        scale: a factor on all gradients.
        step_counter: is advanced.
        made_from: `[B, O] float32` and the factors of `normalise`, B at most `MOST_PRODUCT_ROWS`, where the layer has
            no products.
    """
    weight, gamma, beta = velocities
    d, factors = made_from or (None, None)
    native.first_step(
        **_layer_of(layer),
        **table.arguments(groups, scale, step_counter),
        **addresses({"weight_velocity": weight, "gamma_velocity": gamma, "beta_velocity": beta}),
        d=address(d),
        factors=address(factors),
        factors_dtype=DTYPES[torch.float32 if factors is None else factors.dtype],
        rows=0 if d is None else len(d),
    )


def _layer_of(layer: FirstLayer) -> dict[str, float]:
    n_out, n_in = layer.weight.shape
    return {
        **addresses({"weight": layer.weight, "gamma": layer.gamma, "beta": layer.beta}),
        "products": address(layer.products),
        "sums": address(layer.dbias if layer.dropout.p == 0 else None),
        "n_out": n_out,
        "n_in": n_in,
        "kept_scale": 1 / (1 - layer.dropout.p),
    }
