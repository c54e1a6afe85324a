"""Attention over a tree's row on MLX: the twin of torch/tree.py, with its equations.

mlx-lm's models take no mask and no positions, but a cache, which they ask for the positions of what
comes in, one a sequence. So every token of the row comes in as a sequence of its own, and the cache
that is handed in, `TreeCache`, keeps nothing. Nor do they let a cache attend: `let_trees_attend`
wraps the function that a model's layers call for it.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import numpy as np

from miniact.backends.tree import Tree

WIDTH = 128  # sides of a triangle, and queries of a rectangle, at most: their scores exist at once
_NAME = "scaled_dot_product_attention"  # what the modules of mlx-lm's models call it


def let_trees_attend(model: Any) -> None:
    """Hand attention to the cache where that is a TreeCache; all else is as it was."""
    for name in {type(module).__module__ for module in model.modules()}:
        module: Any = sys.modules[name]
        plain = getattr(module, _NAME, None)
        if plain is not None and not hasattr(plain, "of_trees"):
            setattr(module, _NAME, _with_trees(plain))


def _with_trees(plain: Any) -> Any:
    def attend(queries: mx.array, keys: Any, values: Any, *args: Any, **kwargs: Any) -> mx.array:
        cache = kwargs.get("cache", args[0] if args else None)
        if not isinstance(cache, TreeCache):
            return plain(queries, keys, values, *args, **kwargs)
        if kwargs.keys() - {"cache", "scale", "mask"} or kwargs.get("mask") is not None:
            raise NotImplementedError("attention with more than a scale over a tree")
        return cache.attend(queries, keys, values, kwargs["scale"])

    attend.of_trees = True  # type: ignore[attr-defined]
    return attend


class TreeCache:
    """A row's positions and attention, in a cache's clothes. T tokens, X of them in branches."""

    def __init__(self, tree: Tree) -> None:
        self.parts = Parts(tree)
        self.token_T1 = mx.array(tree.token_T)[:, None]
        self.offset = mx.array(tree.position_T)

    def make_mask(self, *args: Any, **kwargs: Any) -> None:
        """No mask: `attend` knows what a token sees."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """q, k, v: [T, heads, 1, D] → [T, H, 1, D]."""
        q_THD, k_TKD, v_TKD = (x[:, :, 0] for x in (q, k, v))
        H, K = q_THD.shape[1], k_TKD.shape[1]
        outs_THD = []
        for index_nL in map(mx.array, self.parts.roots):
            q_nHLD, k_nKLD, v_nKLD = (
                x[index_nL].transpose(0, 2, 1, 3) for x in (q_THD, k_TKD, v_TKD)
            )
            out_nHLD = mx.fast.scaled_dot_product_attention(
                q_nHLD, k_nKLD, v_nKLD, scale=scale, mask="causal"
            )
            outs_THD.append(out_nHLD.transpose(0, 2, 1, 3).flatten(0, 1))
        if len(self.parts.branch_X):
            q_XKED = q_THD[mx.array(self.parts.branch_X)].reshape(-1, K, H // K, q.shape[-1])
            q_KXED, k_KTD, v_KTD = (x.swapaxes(0, 1) for x in (q_XKED, k_TKD, v_TKD))
            out_KXED = _branches(self.parts, scale)(q_KXED, k_KTD, v_KTD)[0]
            outs_THD.append(out_KXED.swapaxes(0, 1).flatten(1, 2))
        return mx.concatenate(outs_THD)[mx.array(self.parts.back_T)][:, :, None]


def _branches(parts: Parts, scale: float) -> Any:
    """Attention of q [K, X, E, D] over k, v [K, T, D] → [K, X, E, D], and its normaliser."""
    triangles = [tuple(map(mx.array, both)) for both in parts.triangles]

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        return _forward((q, k, v), triangles, parts.rectangles, scale)

    @attend.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        whole = (cotangents[0], *outputs)  # the normaliser is not differentiated itself
        return _gradients(primals, whole, triangles, parts.rectangles, scale)

    return attend


def _forward(inputs: Any, triangles: Any, rectangles: Any, scale: float) -> Any:
    q, k, v = inputs
    out = mx.zeros((*q.shape[:3], v.shape[-1]), mx.float32)
    lse = mx.zeros((*q.shape[:3], 1), mx.float32)
    for mine_nC, place_nC in triangles:
        s = _triangle(_few(q, mine_nC), _few(k, place_nC), scale)
        x = mine_nC.flatten()
        out_x, lse_x = _softmax(s, _few(v, place_nC))
        out[:, x] = out_x.reshape(out.shape[0], len(x), *out.shape[2:])
        lse[:, x] = lse_x.reshape(lse.shape[0], len(x), *lse.shape[2:])
    for a, b, c, d in rectangles:
        s = _scores(q[:, a:b].flatten(1, 2), k[:, c:d], scale)
        out_x, lse_x = _softmax(s, v[:, c:d])
        whole = lse[:, a:b]
        part = lse_x.reshape(whole.shape)
        both = mx.logaddexp(whole, part)
        part_out = out_x.reshape(out[:, a:b].shape) * mx.exp(part - both)
        out[:, a:b] = out[:, a:b] * mx.exp(whole - both) + part_out
        lse[:, a:b] = both
    return out.astype(v.dtype), lse


def _gradients(inputs: Any, outputs: Any, triangles: Any, rectangles: Any, scale: float) -> Any:
    (q, k, v), (grad, out, lse) = inputs, outputs
    along = (grad * out).astype(mx.float32).sum(-1, keepdims=True)
    dq, dk, dv = (mx.zeros(x.shape, mx.float32) for x in (q, k, v))
    for mine_nC, place_nC in triangles:
        x, y = mine_nC.flatten(), place_nC.flatten()
        q_x, *whole = (_few(z, mine_nC) for z in (q, grad, lse, along))
        k_y, v_y = _few(k, place_nC), _few(v, place_nC)
        s = _triangle(q_x, k_y, scale)
        dq_x, dk_y, dv_y = _backward(s, (q_x, k_y, v_y), whole, scale)
        dq[:, x] = dq_x.reshape(dq.shape[0], len(x), *dq.shape[2:])
        dk[:, y] = dk_y.reshape(dk.shape[0], len(y), -1)
        dv[:, y] = dv_y.reshape(dv.shape[0], len(y), -1)
    for a, b, c, d in rectangles:
        q_x, *whole = (z[:, a:b].flatten(1, 2) for z in (q, grad, lse, along))
        k_y, v_y = k[:, c:d], v[:, c:d]
        s = _scores(q_x, k_y, scale)
        dq_x, dk_y, dv_y = _backward(s, (q_x, k_y, v_y), whole, scale)
        dq[:, a:b] = dq[:, a:b] + dq_x.reshape(dq[:, a:b].shape)
        dk[:, c:d] = dk[:, c:d] + dk_y
        dv[:, c:d] = dv[:, c:d] + dv_y
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _few(x: mx.array, index_nC: mx.array) -> mx.array:
    """[K, tokens, (E,) D] → [K·n, C(·E), D]: these tokens, one segment's beside each other."""
    return x[:, index_nC.flatten()].reshape(len(x) * len(index_nC), -1, x.shape[-1])


def _scores(q: mx.array, k: mx.array, scale: float) -> mx.array:
    return (q @ k.swapaxes(1, 2)).astype(mx.float32) * scale


def _triangle(q: mx.array, k: mx.array, scale: float) -> mx.array:
    """The scores of segments with themselves: q [K·n, C·E, D], k [K·n, C, D]."""
    C = k.shape[1]
    sees = np.tri(C, dtype=bool).repeat(q.shape[1] // C, 0)
    return mx.where(mx.array(sees), _scores(q, k, scale), float("-inf"))


def _softmax(s: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    """softmax(s) · v and the logarithm of the normaliser."""
    most = s.max(-1, keepdims=True)
    p = mx.exp(s - most)
    total = p.sum(-1, keepdims=True)
    return (p.astype(v.dtype) @ v).astype(mx.float32) / total, most + mx.log(total)


def _backward(s: mx.array, inputs: Any, whole: Any, scale: float) -> Any:
    """∂q, ∂k, ∂v of one part from its scores."""
    (q, k, v), (grad, lse, along) = inputs, whole
    p = mx.exp(s - lse)
    dv = p.astype(v.dtype).swapaxes(1, 2) @ grad
    dp = (grad @ v.swapaxes(1, 2)).astype(mx.float32)
    ds = (p * (dp - along) * scale).astype(q.dtype)
    return ds @ k, ds.swapaxes(1, 2) @ q, dv


class Parts:
    """A tree's attention in parts that need no mask. T tokens, X of them are branches.

    roots       segments that hang on nothing, [n, L]: places in the row
    branches    all other tokens. Each attends to its own segment, a triangle, and to every stretch
                that it is linked to, a rectangle; long segments are cut into blocks
    """

    def __init__(self, tree: Tree) -> None:
        T = len(tree.token_T)
        hangs_T = np.zeros(T, dtype=bool)
        for first, end, *_ in tree.links:
            hangs_T[first:end] = True
        mine_T = np.cumsum(hangs_T) - hangs_T  # a branch token's place among its like
        self.branch_X = np.flatnonzero(hangs_T)
        self.roots = _by_length([s for s in tree.segments if not hangs_T[s[0]]])
        blocks, links = _blocks([s for s in tree.segments if hangs_T[s[0]]])
        self.triangles = [(mine_T[place_nC], place_nC) for place_nC in _by_length(blocks)]
        self.rectangles = [
            (int(mine_T[a]), int(mine_T[a]) + min(WIDTH, end - a), *keys)
            for first, end, *keys in (*links, *tree.links)
            for a in range(first, end, WIDTH)
        ]  # queries first … end among the branches, keys first … end in the row
        self.back_T = np.argsort(np.concatenate([*map(np.ravel, self.roots), self.branch_X]))


def _by_length(segments: list[tuple[int, int]]) -> list[np.ndarray]:
    """The places [n, C] of these segments, those of one length C together."""
    firsts: dict[int, list[int]] = {}
    for first, end in segments:
        firsts.setdefault(end - first, []).append(first)
    return [np.array(firsts_n)[:, None] + np.arange(C) for C, firsts_n in firsts.items()]


def _blocks(segments: list[tuple[int, int]]) -> tuple[list, list]:
    """Cut long segments into blocks, and link each to what comes before it in its segment."""
    blocks, links = [], []
    for first, end in segments:
        for a in range(first, end, WIDTH):
            blocks.append((a, min(a + WIDTH, end)))
            if a > first:
                links.append((*blocks[-1], first, a))
    return blocks, links
