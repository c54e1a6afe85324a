"""The policy on PyTorch: sampling, log-probabilities, gradients. (The loading is in load.py.)

Two ideas make it fit one consumer GPU. A prompt is computed once for all its answers, when sampling
(one prefill, then the cache is widened) and when training, where whatever begins alike is computed
once (`layout.py` lays it out as a tree). And logits exist only at the positions that predict
completion tokens, a chunk at a time.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from miniact import UserError
from miniact.backends.common import (
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
from miniact.backends.models import ModelSource, end_tokens, load_tokenizer
from miniact.backends.sampling import Drawn, Request, Room, cache_bytes, decode, sample
from miniact.backends.torch.attention import no_mask, use_shared_attention
from miniact.backends.torch.device import pick_device, pick_dtype
from miniact.backends.torch.fast import merged, speed_up
from miniact.backends.torch.head import Head
from miniact.backends.torch.load import attach, body_of, can_share_prompts, load_base, read_model
from miniact.backends.torch.memory import release, usable
from miniact.backends.torch.optimizer import fresh_adamw, load_state, save_state
from miniact.backends.torch.sample import Keys, NoKeys, Rows, SharedKeys, WidenedKeys
from miniact.backends.torch.tree import PackedRow
from miniact.backends.trial import check
from miniact.config.sections import ModelConfig
from miniact.types import Completion, Group, Loss, Sample


class TorchPolicy:
    fast_ways: tuple[str, ...] = (
        "share a prompt between answers",
        "sample prompts of unequal length together",
        "go on from what it computed of a text",
    )

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config, self.name = config, config.path
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        folder = model_folder(config.path)
        self.tokenizer = load_tokenizer(ModelSource(str(folder), is_local=True))
        base = load_base(folder, config.adapter, self.device, self.dtype)
        self.model = attach(base, config, seed)
        self.causal_lm = self.model if config.adapter == "full" else self.model.get_base_model()
        self.body, self.family = body_of(self.causal_lm), self.causal_lm.config.model_type
        self.has_adapter = config.adapter != "full"
        self.tolerance = 1e-3 if self.dtype == torch.float32 else 0.2  # one token may be off by 0.5
        self.ends = end_tokens(self.tokenizer, str(folder))
        self.head = Head(self.causal_lm, frozen=config.adapter != "full")
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.reference: dict[str, torch.Tensor] = {}
        self.budgets, self.held = (
            Budgets(config, lambda: usable(self.device), self._release),
            Held(moves=True),
        )
        self.ways = (can_share_prompts(self.causal_lm), True, True)
        self._checked = {"sampling", "training"}  # against the plain way, on first use
        self.reset_optimizer()
        if config.gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        self._mode(training=False)
        speed_up(self.model, self.dtype)
        file = folder / "config.json"
        options = (config.adapter, config.gradient_checkpointing, self.device, self.dtype)
        check(self, key=("torch", file, file.stat().st_mtime_ns, *options))
        self._checked = set()

    def _release(self) -> None:
        self.held.drop()
        release(self.device)

    @property
    def ways(self) -> tuple[bool, ...]:
        return self.shares_prompts, self.pads_prompts, self.keeps_keys

    @ways.setter
    def ways(self, used: tuple[bool, ...]) -> None:
        self.shares_prompts, self.pads_prompts, self.keeps_keys = used
        use_shared_attention(self.causal_lm, self.shares_prompts)

    # ---- modes ---------------------------------------------------------------------------------

    def _mode(self, training: bool) -> None:
        """Switch checkpointing on for training; off for sampling, where it would drop the cache.

        bitsandbytes' 4-bit layers stay in training mode always: on some CPUs one forward in eval
        mode repacks their weights for good, and later gradients come out wrong.
        """
        self.model.train(training)
        for module in self.model.modules():
            if type(module).__name__ == "Linear4bit":
                module.train(True)

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

    @torch.no_grad()
    def answer(self, request: Request) -> list[list[Sample]]:
        self._mode(training=False)
        # in bfloat16 a sum is rounded, and it would sample from another policy than is trained
        exact = self.config.adapter == "lora" and self.dtype == torch.float32
        with merged(self.model) if exact else contextlib.nullcontext():
            return sample(self, request)

    def room(self) -> Room:
        return Room(
            limit=self.budgets.sampling,
            token=cache_bytes(self.causal_lm.config.get_text_config(), self.dtype.itemsize),
            row=16 * self.causal_lm.config.get_text_config().vocab_size,
            shared=self.shares_prompts,
            prefill=0 if self.shares_prompts else self.budgets.prefill,
            one_length=not self.shares_prompts and not self.pads_prompts,
            holds=self.shares_prompts,
        )

    def sample_rows(self, plan: Plan, uniform_RC: np.ndarray, temperature: float) -> Drawn:
        prompts, room = plan.prompts, self.room()
        n, max_tokens = len(uniform_RC) // len(prompts), uniform_RC.shape[1]
        keys: Keys = (WidenedKeys if self.keeps_keys else NoKeys)(self.body, prompts, n)
        if self.shares_prompts:
            keys = SharedKeys(self.body, plan, n, max_tokens, self.budgets.prefill)
        rows = Rows(self.head, temperature, keys)
        if isinstance(keys, SharedKeys):
            size = room.token * sum(x.shape[0] * x.shape[2] for x, _ in keys.cache.prompt[:1])
            # half of them once more: of prompts of which few are left, these are copied
            self.held.keep(plan, list(keys.cache.prompt), size, room.limit, size / 2)
        tokens, logps = decode(rows, uniform_RC, self.ends)
        longest = max(range(len(tokens)), key=lambda row: len(tokens[row]))
        if self.shares_prompts and "sampling" not in self._checked and len(tokens[longest]) > 1:
            answer = Completion(tuple(tokens[longest]))  # one token says nothing of the cache
            group = Group(tuple(prompts[longest // n]), (answer,))
            plain = _joined(self._score([group], temperature or 1.0, shared=False))
            self._compare("sampling", np.asarray(logps[longest]), plain)
            if not self.shares_prompts:  # again, the other way
                return self.sample_rows(plan, uniform_RC, temperature)
        return tokens, logps

    # ---- scoring and training ------------------------------------------------------------------

    def _logp_N(self, layout: Layout, temperature: float, shared: bool) -> torch.Tensor:
        """log π of every completion token of one micro-batch, shape [N], float32."""
        if shared:
            row = PackedRow(layout, self.device)
            hidden_1TD = self.body(
                input_ids=row.token_1T,
                attention_mask=no_mask(self.device),
                position_ids=row.position_1T,
                use_cache=False,
                shared=row,
            ).last_hidden_state
            # Answers share their prompt's last token. What goes back to it is a sum: index_select's
            # has an order, that of hidden[index] is a race between threads.
            hidden_ND = hidden_1TD[0].index_select(0, row.index_N)
        else:  # a row is one prompt and one answer, right padded: causal is right as it is
            token_BL = self._tensor(layout.token_BL)
            hidden_BLD = self.body(input_ids=token_BL, use_cache=False).last_hidden_state
            hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, self._tensor(layout.place_N))
        return self.head.logp(hidden_ND, self._tensor(layout.target_N), temperature)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _sharing(self, groups: Sequence[Group]) -> bool:
        """Whether a prompt is shared by its answers; compared with the plain way on first use."""
        if groups and self.shares_prompts and "training" not in self._checked:
            first = next(layouts(groups, self.budgets.training, shared=True))
            chosen = [groups[i] for i in sorted({g for g, _ in first.order})]
            shared, plain = (self._score(chosen, 1.0, way) for way in (True, False))
            self._compare("training", _joined(shared), _joined(plain))
        return self.shares_prompts

    def _compare(self, what: str, shared: np.ndarray, plain: np.ndarray) -> None:
        """Are shared prompts exact for this architecture? If not, say so and never share again."""
        self._checked.add(what)
        error = float(np.abs(shared - plain).mean())
        if not error <= self.tolerance:
            self.shares_prompts = False
            self.held.drop()
            note = (
                f"note: {self.family} cannot share a prompt between answers (log-probs differ by "
                f"{error:.2g} on average); this is done the plain way, more slowly"
            )
            print(note, file=sys.stderr)

    @torch.no_grad()
    def own_logps(self, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        self._mode(training=False)
        token_1L = torch.tensor([[*prompt, *answer]], device=self.device)
        logit_1LV = self.causal_lm(input_ids=token_1L, use_cache=False).logits
        logp_CV = logit_1LV[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        return logp_CV.gather(1, token_1L[0, len(prompt) :, None])[:, 0].cpu().numpy()

    @torch.no_grad()
    def _score(self, groups: Sequence[Group], temperature: float, shared: bool) -> list[list]:
        out: list[list] = [[None] * len(g.completions) for g in groups]
        for layout in layouts(groups, self.budgets.training, shared):
            logp_N = self._logp_N(layout, temperature, shared).cpu().numpy()
            split_by_completion(logp_N, layout, out)
        return out

    def logprobs(
        self, groups: Sequence[Group], temperature: float = 1.0, reference: bool = False
    ) -> list[list[np.ndarray]]:
        self._mode(training=False)
        with self._reference_weights() if reference else contextlib.nullcontext():
            return until_it_fits(
                lambda: self._score(groups, temperature, self._sharing(groups)),
                lambda: self.budgets.less_for_training(longest_answer(groups)),
            )

    def forward_backward(
        self, groups: Sequence[Group], loss: Loss, temperature: float = 1.0
    ) -> dict[str, float]:
        self.held.drop()  # a step changes the weights, and this pass wants the memory
        earlier = {p: p.grad for p in self.trainable.values()}
        for parameter in earlier:  # set aside: a pass that fails must leave nothing in them
            parameter.grad = None

        def less() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.budgets.less_for_training(longest_answer(groups))

        metrics = until_it_fits(lambda: self._forward_backward(groups, loss, temperature), less)
        for parameter, gradient in earlier.items():
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return metrics

    def _forward_backward(
        self, groups: Sequence[Group], loss: Loss, temperature: float
    ) -> dict[str, float]:
        self._mode(training=True)
        sums: dict[str, Any] = {"repeated_tokens": 0}
        shared = self._sharing(groups)
        for layout in layouts(groups, self.budgets.training, shared):
            tokens = loss_tokens(groups, layout).map(self._tensor)
            value, metrics = loss(torch, self._logp_N(layout, temperature, shared), tokens)
            value.backward()
            sums["repeated_tokens"] += layout.repeated
            for name, metric in metrics.items():
                sums[name] = sums.get(name, 0.0) + metric.detach()
        return {name: float(value) for name, value in sums.items()}

    def optim_step(self, lr: float, max_grad_norm: float) -> float:
        self.held.drop()
        norm = torch.nn.utils.clip_grad_norm_(self.trainable.values(), max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    # ---- state ---------------------------------------------------------------------------------

    def reset_optimizer(self) -> None:
        self.optimizer = fresh_adamw(self.trainable)

    def freeze_reference(self) -> None:
        self.reference = {n: p.detach().clone() for n, p in self.trainable.items()}

    @contextlib.contextmanager
    def _reference_weights(self) -> Iterator[None]:
        """Put π_ref's weights in place for a while. They are small: an adapter's."""
        current = {n: p.detach().clone() for n, p in self.trainable.items()}
        self._assign(self.reference)
        try:
            yield
        finally:
            self._assign(current)

    @contextlib.contextmanager
    def disturbed(self, seed: int) -> Iterator[None]:
        chance, kept = torch.Generator().manual_seed(seed), {}
        if self.has_adapter:
            kept = {n: p.detach().clone() for n, p in self.trainable.items()}
            noise = {n: torch.randn(p.shape, generator=chance) for n, p in kept.items()}
            self._assign({n: 0.3 * x.shape[-1] ** -0.5 * x for n, x in noise.items()})
        try:
            yield
        finally:
            self._assign(kept)
            self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _assign(self, weights: dict[str, torch.Tensor]) -> None:
        self.held.drop()
        for name, weight in weights.items():
            self.trainable[name].copy_(weight)

    def save_adapter(self, folder: Path) -> None:
        self.held.drop()  # a run that goes on from here holds none either
        self.model.save_pretrained(folder, safe_serialization=True)
        if self.config.adapter == "full":
            self.tokenizer.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card

    def load_adapter(self, folder: Path) -> None:
        self.held.drop()
        full = self.config.adapter == "full"
        file = weight_file(folder, self.config.adapter)
        try:
            weights = load_file(file, device=str(self.device))
        except SafetensorError as error:
            raise UserError(f"{file}: no safetensors file: {error!s:.100}") from None
        if full:
            mine = self.model.state_dict()
            weights = weights if weights.keys() <= mine.keys() else read_model(folder)
            check_same_shape(folder, weights, mine)
            self.model.load_state_dict(weights, strict=False)  # tied weights are stored once
            return
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        check_same_shape(folder, weights, get_peft_model_state_dict(self.model))
        check_scale(folder, self.config)
        set_peft_model_state_dict(self.model, weights)

    def save_optimizer(self, file: Path) -> None:
        save_state(self.optimizer, file)

    def load_optimizer(self, file: Path) -> None:
        self.reset_optimizer()
        load_state(self.optimizer, self.trainable, file)


def _joined(scored: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([logp for group in scored for logp in group])
