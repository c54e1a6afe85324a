"""TRL's GRPOTrainer doing the work of `bench.py`: what its user gets, on the same model.

Same weights, adapter, prompts, G, lengths, precision (float32 on a CPU), one optimizer step per
sampled batch, β = 0. All else is TRL's default, checkpointing and its loss among it.

`lean` leaves one cost out: off CUDA, TRL's head scores every position of a row, prompt included;
on CUDA only those of the answer. The lean side scores only those here too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from miniact import UserError
from miniact.backends.common import model_folder
from miniact.backends.torch.device import pick_device, pick_dtype


class _Stepper(transformers.TrainerCallback):
    """Lets the trainer take a step only when told to, and reports it afterwards."""

    def __init__(self, wait: Callable[[], None], report: Callable[[float], None]) -> None:
        self.wait, self.report = wait, report

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.wait()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(time.perf_counter() - self.start)


def run_trl(work: Any, texts: list[str], lean: bool, serve: Any) -> None:
    """Train as many steps as there are texts; `serve` is told when and what (see worker.py)."""
    try:
        import datasets
        import trl
        from peft import LoraConfig
    except ImportError:
        raise UserError('bench: TRL is an extra: run `pip install "miniact[dev]"`') from None
    if lean:
        trl.trainer.utils._use_triton = lambda device: True  # read there for `compact` alone
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    with tempfile.TemporaryDirectory() as folder:
        args = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=work.group_size,
            num_generations=work.group_size,
            max_completion_length=work.completion_tokens,
            generation_kwargs={"min_new_tokens": work.completion_tokens},
            max_steps=len(texts),
            learning_rate=1e-5,
            temperature=1.0,
            bf16=dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            model_init_kwargs={"dtype": dtype},
            save_strategy="no",
            report_to="none",
            logging_steps=10**9,
            disable_tqdm=True,
            shuffle_dataset=False,
            seed=work.seed,
        )
        rng = np.random.default_rng(work.seed)
        trainer = trl.GRPOTrainer(
            model=str(model_folder(work.model)),
            reward_funcs=lambda completions, **kwargs: rng.random(len(completions)).tolist(),
            args=args,
            train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in texts]),
            peft_config=LoraConfig(
                r=work.rank,
                lora_alpha=2 * work.rank,
                target_modules="all-linear",
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
            ),
        )
        sampling = [0.0]
        inner = trainer._generate

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                sampling[0] += time.perf_counter() - start

        setattr(trainer, "_generate", timed)  # noqa: B010  (mypy: a method)

        def report(seconds: float) -> None:
            serve.report(sampling[0], seconds - sampling[0])
            sampling[0] = 0.0

        trainer.add_callback(_Stepper(serve.wait, report))
        serve.ready(trainer.model)
        trainer.train()
