"""The policy on MLX: sampling, log-probabilities, gradients; the twin of torch/policy.py.

mlx-lm's models take tokens and a KV cache, but no mask and no positions. So a prompt is shared
between its answers through the cache, in sampling and in training alike: the prompts of a batch run
once, left padded; their cache is widened to one row per answer; the answers continue it. In
training the gradient flows back through the cache into the prompt.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from miniact import UserError
from miniact.backends.common import (
    check_same_shape,
    check_scale,
    chunks,
    model_folder,
    to_sample,
    weight_file,
)
from miniact.backends.layout import Layout, layouts, loss_tokens, split_by_completion
from miniact.backends.mlx.head import Head
from miniact.backends.mlx.load import attach, load_base, pick_device
from miniact.backends.models import ModelSource, end_tokens, load_tokenizer, rope_at_top
from miniact.config.sections import ModelConfig
from miniact.types import Group, Loss, Sample

PEFT = "base_model.model."  # what PEFT puts before a layer's name


class MLXPolicy:
    def __init__(self, config: ModelConfig, seed: int) -> None:
        pick_device(config.device)
        self.config, self.name = config, config.path
        self.folder = model_folder(config.path)
        self.tokenizer = load_tokenizer(ModelSource(str(self.folder), is_local=True))
        self.ends = end_tokens(self.tokenizer, str(self.folder))
        self.model = attach(load_base(self.folder, config), self.folder, config, seed)
        self.body = self.model.model
        self.head = Head(self.model, frozen=config.adapter != "full")
        self.budget = config.max_tokens_per_batch
        # sliding windows and linear attention keep other caches, which take no left padding
        self.pads_left = all(type(c) is KVCache for c in make_prompt_cache(self.model))
        self.reference: dict[str, mx.array] = {}
        self.gradients: Any = None
        self.reset_optimizer()

    # ---- the cache -----------------------------------------------------------------------------

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[mx.array, list[Any]]:
        """Run each prompt once. Returns the hidden state after its last token, and the cache."""
        P = max(map(len, prompts))
        padding = [P - len(p) for p in prompts]  # left padding: all answers start in one column
        token_BP = mx.array([[0] * n + list(p) for n, p in zip(padding, prompts)])
        cache = make_prompt_cache(self.model)
        if self.pads_left:
            cache = [BatchKVCache(padding) for _ in cache]
            for layer in cache:
                layer.step = max(P, 32)  # by which it grows; 256, the default, wastes memory
        return self.body(token_BP, cache)[:, -1], cache

    # ---- sampling ------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        self.model.eval()
        keys = _random_keys(seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together
        out: list[list[Sample]] = [[] for _ in prompts]
        for _, part in groupby(order, key=lambda i: 0 if self.pads_left else len(prompts[i])):
            for chunk in chunks(list(part), prompts, n, max_tokens, self.budget):
                rows = self._sample_chunk(
                    [prompts[i] for i in chunk], n, max_tokens, temperature, keys
                )
                for i, samples in zip(chunk, rows):
                    out[i] = samples
        mx.clear_cache()  # the memory of a Mac is shared with everything else
        return out

    def _sample_chunk(
        self,
        prompts: list[Sequence[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        keys: Iterator[mx.array],
    ) -> list[list[Sample]]:
        """Prefill each prompt once, widen its cache to n rows, decode, drop rows as they finish."""
        hidden_BD, cache = self._prefill(prompts)
        _pick_rows(cache, [b for b in range(len(prompts)) for _ in range(n)])
        hidden_RD = mx.repeat(hidden_BD, n, axis=0)
        row_R = list(range(len(prompts) * n))  # which answer each live row is
        tokens: list[list[int]] = [[] for _ in row_R]
        logps: list[list[float]] = [[] for _ in row_R]
        for step in range(max_tokens):
            token_R, logp_R = self._draw(hidden_RD, temperature, next(keys))
            for row, token, logp in zip(row_R, np.array(token_R), np.array(logp_R)):
                tokens[row].append(int(token))
                logps[row].append(float(logp))
            live = [i for i, row in enumerate(row_R) if tokens[row][-1] not in self.ends]
            if not live or step == max_tokens - 1:
                break
            if len(live) < len(row_R):
                _pick_rows(cache, live)
                token_R, row_R = token_R[mx.array(live)], [row_R[i] for i in live]
            hidden_RD = self.body(token_R[:, None], cache)[:, -1]
        samples = [to_sample(self.tokenizer, self.ends, t, p) for t, p in zip(tokens, logps)]
        return [samples[b * n : (b + 1) * n] for b in range(len(prompts))]

    def _draw(
        self, hidden_RD: mx.array, temperature: float, key: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Next token of every row, and its log-probability at this temperature (greedy: at 1)."""
        z_RV = self.head.logits(hidden_RD, temperature or 1.0)
        logp_RV = z_RV - mx.logsumexp(z_RV, -1, keepdims=True)
        if temperature == 0:
            token_R = mx.argmax(logp_RV, -1)
        else:
            token_R = mx.random.categorical(logp_RV, key=key)
        return token_R, mx.take_along_axis(logp_RV, token_R[:, None], 1)[:, 0]

    # ---- scoring and training --------------------------------------------------------------------

    def _layouts(self, groups: Sequence[Group]) -> Iterator[Layout]:
        """Micro-batches. Groups with prompts of alike length go together, for they get padded."""
        if not self.pads_left or all(len(g.completions) == 1 for g in groups):
            yield from layouts(groups, self.budget, shared=False)
            return
        prompts = [g.prompt for g in groups]
        n = max(len(g.completions) for g in groups)
        longest = max(len(c.tokens) for g in groups for c in g.completions)
        order = sorted(range(len(groups)), key=lambda i: len(prompts[i]))
        for chunk in chunks(order, prompts, n, longest, self.budget):
            for layout in layouts([groups[i] for i in chunk], self.budget, shared=True):
                yield replace(layout, order=[(chunk[g], c) for g, c in layout.order])

    def _logp_N(self, layout: Layout, temperature: float, gradient: bool) -> mx.array:
        """log π of every completion token of one micro-batch, shape [N], float32."""
        hidden_ND = self._plain(layout) if layout.is_causal else self._shared(layout)
        return self.head.logp(hidden_ND, mx.array(layout.target_N), temperature, gradient)

    def _plain(self, layout: Layout) -> mx.array:
        """One row per answer, right padded: no token sees the padding after it."""
        hidden_BLD = self.body(mx.array(layout.token_BL))
        return hidden_BLD[mx.array(layout.row_N), mx.array(layout.col_N)]

    def _shared(self, layout: Layout) -> mx.array:
        """Each prompt once, then all answers, right padded, over its widened cache."""
        prompts, answers, prompt_R = _unpack(layout)
        hidden_BD, cache = self._prefill(prompts)
        hidden_R1D = hidden_BD[mx.array(prompt_R)][:, None]
        C = max(map(len, answers))
        if C > 1:  # an answer's last token predicts nothing
            token_RC = mx.array([[*a[:-1], *[0] * (C - len(a))] for a in answers])
            _pick_rows(cache, prompt_R)
            hidden_R1D = mx.concatenate([hidden_R1D, self.body(token_RC, cache)], axis=1)
        row_N = [r for r, answer in enumerate(answers) for _ in answer]
        col_N = [t for answer in answers for t in range(len(answer))]
        return hidden_R1D[mx.array(row_N), mx.array(col_N)]

    def logprobs(
        self, groups: Sequence[Group], temperature: float = 1.0, reference: bool = False
    ) -> list[list[np.ndarray]]:
        self.model.eval()
        out: list[list] = [[None] * len(g.completions) for g in groups]
        with self._reference_weights() if reference else contextlib.nullcontext():
            for layout in self._layouts(groups):
                logp_N = np.array(self._logp_N(layout, temperature, gradient=False))
                split_by_completion(logp_N, layout, out)
        mx.clear_cache()
        return out

    def forward_backward(
        self, groups: Sequence[Group], loss: Loss, temperature: float = 1.0
    ) -> dict[str, float]:
        self.model.train()
        sums: dict[str, float] = {}

        def value(layout: Layout) -> tuple[mx.array, dict[str, mx.array]]:
            tokens = loss_tokens(groups, layout).map(mx.array)
            return loss(mx, self._logp_N(layout, temperature, gradient=True), tokens)

        for layout in self._layouts(groups):
            (_, metrics), gradients = nn.value_and_grad(self.model, value)(layout)
            if self.gradients is not None:
                gradients = tree_map(mx.add, self.gradients, gradients)
            mx.eval(gradients, metrics)
            self.gradients = gradients
            for name, metric in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(metric)
        mx.clear_cache()
        return sums

    def optim_step(self, lr: float, max_grad_norm: float) -> float:
        if self.gradients is None:
            return 0.0
        each = [g.astype(mx.float32) for g in dict(tree_flatten(self.gradients)).values()]
        norm = mx.sqrt(sum(g.square().sum() for g in each))
        scale = mx.minimum(max_grad_norm / (norm + 1e-6), 1.0)  # as torch's clip_grad_norm_
        self.optimizer.learning_rate = lr
        self.optimizer.update(
            self.model, tree_map(lambda g: (g * scale).astype(g.dtype), self.gradients)
        )
        self.gradients = None
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return float(norm)

    # ---- state -----------------------------------------------------------------------------------

    def reset_optimizer(self) -> None:
        self.optimizer = AdamW(
            learning_rate=0.0,
            betas=[0.9, 0.999],
            eps=1e-8,
            weight_decay=0.0,  # MLX's default is 0.01
            bias_correction=True,  # MLX's default is off
        )

    @property
    def trainable(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.model.trainable_parameters()))

    def _assign(self, weights: dict[str, mx.array]) -> None:
        self.model.update(tree_unflatten(list(weights.items())))

    def freeze_reference(self) -> None:
        self.reference = self.trainable  # arrays are never changed in place

    @contextlib.contextmanager
    def _reference_weights(self) -> Iterator[None]:
        """Put π_ref's weights in place for a while."""
        current = self.trainable
        self._assign(self.reference)
        try:
            yield
        finally:
            self._assign(current)

    def save_adapter(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        full = self.config.adapter == "full"
        file = folder / ("model.safetensors" if full else "adapter_model.safetensors")
        weights = {self._saved_name(n): w for n, w in self.trainable.items()}
        mx.save_safetensors(str(file), weights, metadata={"format": "pt"})
        if full:
            self._save_model_files(folder)
            return
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.config.path,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": sorted({n.split(".")[-2] for n in self.trainable}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")

    def _saved_name(self, name: str) -> str:
        return name if self.config.adapter == "full" else f"{PEFT}{name}.weight"

    def _save_model_files(self, folder: Path) -> None:
        """What makes a folder of weights a Hugging Face model."""
        config = json.loads((self.folder / "config.json").read_text())
        config.pop("torch_dtype", None)
        dtype = str(self.body.embed_tokens.weight.dtype).rpartition(".")[2]
        config |= {"dtype": dtype, **rope_at_top(config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = self.folder / "generation_config.json"
        if generation.is_file():
            (folder / generation.name).write_text(generation.read_text())
        self.tokenizer.save_pretrained(folder)

    def load_adapter(self, folder: Path) -> None:
        file = weight_file(folder, self.config.adapter)
        try:
            saved: Any = mx.load(str(file))
        except RuntimeError as error:
            raise UserError(f"{file}: no safetensors file: {error!s:.100}") from None
        if self.config.adapter == "full" and hasattr(self.model, "sanitize"):
            saved = self.model.sanitize(saved)
        mine = self.trainable
        check_same_shape(folder, saved, {self._saved_name(n): w for n, w in mine.items()})
        if self.config.adapter != "full":
            check_scale(folder, self.config)
        weights = {n: saved[s] for n in mine if (s := self._saved_name(n)) in saved}
        self._assign({n: w.astype(mine[n].dtype) for n, w in weights.items()})

    def save_optimizer(self, file: Path) -> None:
        mx.save_safetensors(str(file), dict(tree_flatten(self.optimizer.state)))

    def load_optimizer(self, file: Path) -> None:
        state: Any = mx.load(str(file))
        if "step" not in state:
            raise UserError(f"{file}: was not saved by MLX; finish this stage where it was begun")
        self.reset_optimizer()
        self.optimizer.state = tree_unflatten(list(state.items()))


def _random_keys(seed: int) -> Iterator[mx.array]:
    key = mx.random.key(seed)
    while True:
        key, now = mx.random.split(key)
        yield now


def _pick_rows(cache: list[Any], rows: Sequence[int]) -> None:
    """Make a cache of these rows of itself: repeated ones widen it, absent ones leave it."""
    index = mx.array(list(rows))
    for layer in cache:
        layer.state = tree_map(lambda x: x[index] if isinstance(x, mx.array) else x, layer.state)


def _unpack(layout: Layout) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """The prompts of a shared layout, its answers in their order, and whose answer each is."""
    prompts, answers, prompt_R = [], [], []
    for token_L, slot_L, number_L in zip(layout.token_BL, layout.group_BL, layout.answer_BL):
        for slot in range(slot_L.max() + 1):
            mine = slot_L == slot
            prompts.append(token_L[mine & (number_L == 0)].tolist())
            for number in range(1, number_L[mine].max() + 1):
                answers.append(token_L[mine & (number_L == number)].tolist())
                prompt_R.append(len(prompts) - 1)
    return prompts, answers, prompt_R
