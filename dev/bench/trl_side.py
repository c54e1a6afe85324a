"""TRL's GRPOTrainer doing the work of `bench.py`: what its user gets, on the same model.

Same weights, adapter, prompts, G, lengths, rewards, precision (float32 on a CPU), one optimizer
step per sampled batch, β = 0. All else is TRL's default, checkpointing and its loss among it. It
samples as it does, and that is timed; what it learns from are the answers that our side sampled.

By default TRL samples for all prompts of a step at once and pads them, also in training, to the
longest. `trl_alone` takes one prompt at a time: nothing is padded.

`lean` does so too, and leaves another cost out: off CUDA, TRL's head scores every position of a
row, prompt included; on CUDA only those of the answer. The lean side scores only those here too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from work import Work
from worker import Serve, rewards

from miniact import UserError
from miniact.backends.common import model_folder
from miniact.backends.torch.device import pick_device, pick_dtype


class _Stepper(transformers.TrainerCallback):
    """Lets the trainer take a step only when told to, and reports it afterwards."""

    def __init__(self, wait: Callable[[int], None], report: Callable[[], None]) -> None:
        self.wait, self.report = wait, report

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.wait(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report()


class _Batch:
    """What the trainer is given in place of its own: prompts by number, answers, rewards."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.asked: list[int] = []  # number of the prompt of every row

    def step(self, number: int, answers: list[list[list[int]]]) -> None:
        self.answers = answers
        self.rewards = rewards(self.work, number).tolist()
        self.taken = [0] * len(self.work.prompts)

    def tokenize(self, numbers: list[str]) -> tuple[list[list[int]], None, dict]:
        self.asked = [int(number) for number in numbers]
        return [list(self.work.prompts[i]) for i in self.asked], None, {}

    def answer(self) -> list[list[int]]:
        """The next answers of each row's group; `score` then scores the same."""
        self.scores: list[float | None] = []
        out = []
        for i in self.asked:
            out.append(list(self.answers[i][self.taken[i]]))
            self.scores.append(self.rewards[i][self.taken[i]])
            self.taken[i] += 1
        return out

    def score(self, completions: list[str], **kwargs: Any) -> list[float | None]:
        return self.scores


def run_trl(work: Work, adapter: Path, lean: bool, serve: Serve) -> None:
    """Take as many steps as asked for; `serve` is told when and what (see worker.py)."""
    try:
        import datasets
        import trl
    except ImportError:
        raise UserError('bench: TRL is an extra: run `pip install "miniact[dev]"`') from None
    if lean:
        trl.trainer.utils._use_triton = lambda device: True  # read there for `compact` alone
    batch = _Batch(work)
    rows = [{"prompt": str(i)} for _ in range(work.steps) for i in range(len(work.prompts))]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=str(model_folder(work.path)),
            reward_funcs=batch.score,
            args=_options(trl, work, folder, lean or work.trl_alone),
            train_dataset=datasets.Dataset.from_list(rows),
            peft_config=_lora(work.rank),
        )
        _start_from(trainer.model, adapter)
        serve.weigh(trainer.model)
        _warm_up(trainer.model, work.prompts[0])
        _take_over(trainer, batch, serve)
        serve.ready()
        trainer.train()


def _options(trl: Any, work: Work, folder: str, alone: bool) -> Any:
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    rows = min(work.trl_rows, work.group_size)
    if work.group_size % rows:
        raise UserError(f"bench: --trl-rows: expected a divisor of G, {work.group_size}")
    parts = work.group_size // rows  # micro-batches of a group
    return trl.GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=len(work.prompts) * parts,
        steps_per_generation=parts if alone else None,
        num_generations=work.group_size,
        max_completion_length=work.completion_tokens,
        generation_kwargs={"min_new_tokens": work.completion_tokens},
        max_steps=work.steps,
        learning_rate=0.0,
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


def _lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def _start_from(model: Any, adapter: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))


def _warm_up(model: Any, prompt: tuple[int, ...]) -> None:
    """One prompt through what is timed later, so that no step is the first of its kind."""
    token_1P = torch.tensor([prompt], device=model.device)
    with torch.no_grad():
        model.generate(input_ids=token_1P, max_new_tokens=2, min_new_tokens=2)
    model(input_ids=token_1P, labels=token_1P).loss.backward()
    model.zero_grad(set_to_none=True)


def _take_over(trainer: Any, batch: _Batch, serve: Serve) -> None:
    """Time its sampling, put our answers in their place, and keep the gradients."""
    generate, generate_turn = trainer._generate, trainer._generate_single_turn
    clip = trainer.accelerator.clip_grad_norm_

    def timed(*args: Any, **kwargs: Any) -> Any:
        with serve.watch("sampling"):
            return generate(*args, **kwargs)

    def answered(*args: Any, **kwargs: Any) -> Any:
        _, logps = generate_turn(*args, **kwargs)
        return batch.answer(), logps

    def kept(*args: Any, **kwargs: Any) -> Any:
        parameters = trainer.model.named_parameters()
        serve.keep({name: p.grad for name, p in parameters if p.grad is not None})
        return clip(*args, **kwargs)

    trainer._generate, trainer._generate_single_turn = timed, answered
    trainer._tokenize_prompts = batch.tokenize
    trainer.accelerator.clip_grad_norm_ = kept

    def wait(number: int) -> None:
        batch.step(number, serve.wait()["answers"])

    trainer.add_callback(_Stepper(wait, lambda: serve.report([])))
