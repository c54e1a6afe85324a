"""The policy on MLX: sampling, log-probabilities, gradients; the twin of torch/policy.py.

In sampling a prompt is shared by its answers through the KV cache: the prompts of a batch run once,
left padded, and their cache is widened to one row per answer. In training whatever begins alike is
computed once, in one row (layout.py); its attention is tree.py's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from miniact import UserError
from miniact.backends.common import (
    check_moments,
    check_same_shape,
    check_scale,
    model_folder,
    weight_file,
)
from miniact.backends.held import Held, Plan
from miniact.backends.layout import (
    Layout,
    layouts,
    longest_answer,
    loss_tokens,
    split_by_completion,
)
from miniact.backends.memory import Budgets, until_it_fits
from miniact.backends.mlx.head import Head
from miniact.backends.mlx.load import attach, load_base, pick_device, write_model_files
from miniact.backends.mlx.probe import usable
from miniact.backends.mlx.sample import Caches, HeldKeys, Rows, pick_rows
from miniact.backends.mlx.tree import TreeCache, let_trees_attend
from miniact.backends.models import ModelSource, end_tokens, load_tokenizer
from miniact.backends.sampling import (
    Drawn,
    Request,
    Room,
    cache_bytes,
    decode,
    sample,
)
from miniact.backends.trial import check
from miniact.config.sections import ModelConfig
from miniact.types import Group, Loss, Sample

PEFT = "base_model.model."  # what PEFT puts before a layer's name


class MLXPolicy:
    fast_ways: tuple[str, ...] = (
        "share a prompt between answers",
        "sample prompts of unequal length together",
    )

    def __init__(self, config: ModelConfig, seed: int) -> None:
        pick_device(config.device)
        self.config, self.name = config, config.path
        self.folder = model_folder(config.path)
        self.tokenizer = load_tokenizer(ModelSource(str(self.folder), is_local=True))
        self.ends = end_tokens(self.tokenizer, str(self.folder))
        self.model = attach(load_base(self.folder, config), self.folder, config, seed)
        self.family, self.has_adapter = self.model.model_type, config.adapter != "full"
        self.body = self.model.model
        self.head = Head(self.model, frozen=config.adapter != "full")
        self.budgets, self.held = Budgets(config, usable, self._release), Held(moves=False)
        self.caches = Caches(self.model)
        let_trees_attend(self.model)
        self.shares_prompts = self.caches.pads_left  # both need attention without a window
        self.reference: dict[str, mx.array] = {}
        self.gradients: Any = None
        self.reset_optimizer()
        dtype = self.body.embed_tokens.weight.dtype
        self.tolerance = 1e-3 if dtype == mx.float32 else 0.2  # one token may be off by 0.5
        file = self.folder / "config.json"
        options = (config.adapter, config.gradient_checkpointing, str(mx.default_device()))
        check(self, key=("mlx", file, file.stat().st_mtime_ns, str(dtype), *options))

    def _release(self) -> None:
        self.held.drop()
        mx.clear_cache()

    @property
    def ways(self) -> tuple[bool, ...]:
        return self.shares_prompts, self.caches.pads_left

    @ways.setter
    def ways(self, used: tuple[bool, ...]) -> None:
        self.shares_prompts, self.caches.pads_left = used

    # ---- sampling ------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        return self.answer(Request(prompts, n, max_tokens, temperature, seed))

    def answer(self, request: Request) -> list[list[Sample]]:
        self.model.eval()
        samples = sample(self, request)
        mx.clear_cache()  # the memory of a Mac is shared with everything else
        return samples

    def room(self) -> Room:
        pads = self.caches.pads_left
        return Room(
            limit=self.budgets.sampling,
            token=cache_bytes(self.model.args, self.head.layer.weight.dtype.size),
            row=16 * self.model.args.vocab_size,
            shared=False,
            prefill=0 if pads else self.budgets.prefill,
            one_length=not pads,
            holds=pads and self.shares_prompts,
        )

    def sample_rows(self, plan: Plan, uniform_RC: np.ndarray, temperature: float) -> Drawn:
        n, room = len(uniform_RC) // len(plan.prompts), self.room()
        hidden_BD, cache = (
            self.caches.prefill_plan(plan, self.budgets.prefill)
            if room.holds
            else self.caches.prefill(plan.prompts)
        )
        if room.holds:
            keys = HeldKeys.of(cache)
            self.held.keep(plan, keys, keys.size, room.limit, twice=keys.size)
        pick_rows(cache, [b for b in range(len(plan.prompts)) for _ in range(n)])
        hidden_RD = mx.repeat(hidden_BD, n, axis=0)
        rows = Rows(self.caches, self.head, temperature, cache, hidden_RD)
        return decode(rows, uniform_RC, self.ends)

    # ---- scoring and training --------------------------------------------------------------------

    def _layouts(self, groups: Sequence[Group]) -> Iterator[Layout]:
        return layouts(groups, self.budgets.training, self.shares_prompts)

    def _logp_N(self, layout: Layout, temperature: float, gradient: bool) -> mx.array:
        """log π of every completion token of one micro-batch, shape [N], float32."""
        if layout.tree is not None:
            cache = TreeCache(layout.tree)
            hidden_BLD = self.body(cache.token_T1, [cache] * len(self.body.layers))
        else:  # one row per answer, right padded: no token sees the padding after it
            hidden_BLD = self.body(mx.array(layout.token_BL))
        hidden_ND = hidden_BLD.flatten(0, 1)[mx.array(layout.place_N)]
        return self.head.logp(hidden_ND, mx.array(layout.target_N), temperature, gradient)

    def logprobs(
        self, groups: Sequence[Group], temperature: float = 1.0, reference: bool = False
    ) -> list[list[np.ndarray]]:
        self.model.eval()
        out: list[list] = [[None] * len(g.completions) for g in groups]

        def score() -> None:
            for layout in self._layouts(groups):
                logp_N = np.array(self._logp_N(layout, temperature, gradient=False))
                split_by_completion(logp_N, layout, out)

        with self._reference_weights() if reference else contextlib.nullcontext():
            until_it_fits(score, lambda: self.budgets.less_for_training(longest_answer(groups)))
        mx.clear_cache()
        return out

    def own_logps(self, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        self.model.eval()
        logit_LV = self.model(mx.array([[*prompt, *answer]]))[0].astype(mx.float32)
        logit_CV, target_C = logit_LV[len(prompt) - 1 : -1], mx.array(list(answer))
        chosen_C = mx.take_along_axis(logit_CV, target_C[:, None], 1)[:, 0]
        return np.array(chosen_C - mx.logsumexp(logit_CV, -1))

    def forward_backward(
        self, groups: Sequence[Group], loss: Loss, temperature: float = 1.0
    ) -> dict[str, float]:
        self.held.drop()  # a step changes the weights, and this pass wants the memory
        self.model.train()
        earlier = self.gradients

        def less() -> None:
            self.gradients = earlier  # without what the failed pass had added
            self.budgets.less_for_training(longest_answer(groups))

        sums = until_it_fits(lambda: self._forward_backward(groups, loss, temperature), less)
        mx.clear_cache()
        return sums

    def _forward_backward(
        self, groups: Sequence[Group], loss: Loss, temperature: float
    ) -> dict[str, float]:
        sums = {"repeated_tokens": 0.0}

        def value(layout: Layout) -> tuple[mx.array, dict[str, mx.array]]:
            tokens = loss_tokens(groups, layout).map(mx.array)
            return loss(mx, self._logp_N(layout, temperature, gradient=True), tokens)

        for layout in self._layouts(groups):
            (_, metrics), gradients = nn.value_and_grad(self.model, value)(layout)
            if self.gradients is not None:
                gradients = tree_map(mx.add, self.gradients, gradients)
            mx.eval(gradients, metrics)
            self.gradients = gradients
            sums["repeated_tokens"] += layout.repeated
            for name, metric in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(metric)
        return sums

    def optim_step(self, lr: float, max_grad_norm: float) -> float:
        self.held.drop()
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
        self.held.drop()
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

    @contextlib.contextmanager
    def disturbed(self, seed: int) -> Iterator[None]:
        kept = self.trainable
        if self.has_adapter:
            keys = mx.random.split(mx.random.key(seed), len(kept))
            noise = {n: mx.random.normal(w.shape, key=k) for (n, w), k in zip(kept.items(), keys)}
            self._assign({n: 0.3 * x.shape[-1] ** -0.5 * x for n, x in noise.items()})
        try:
            yield
        finally:
            self._assign(kept)
            self.gradients = None

    def save_adapter(self, folder: Path) -> None:
        self.held.drop()  # a run that goes on from here holds none either
        folder.mkdir(parents=True, exist_ok=True)
        full = self.config.adapter == "full"
        file = folder / ("model.safetensors" if full else "adapter_model.safetensors")
        weights = {self._saved_name(n): w for n, w in self.trainable.items()}
        mx.save_safetensors(str(file), weights, metadata={"format": "pt"})
        if full:
            dtype = str(self.body.embed_tokens.weight.dtype).rpartition(".")[2]
            write_model_files(self.folder, folder, dtype)
            self.tokenizer.save_pretrained(folder)
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
        expected: dict[str, Any] = {"step": (), "learning_rate": ()}
        if len(state) > len(expected):  # there are none before the first step
            expected |= {f"{n}.{m}": w.shape for n, w in self.trainable.items() for m in "mv"}
        check_moments(file, state, expected)
        self.reset_optimizer()
        self.optimizer.state = tree_unflatten(list(state.items()))
