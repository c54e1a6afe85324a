"""A cuda:0 that is not there, for machines without a card: `python tests/fake_cuda.py FOLDER …`.

Tensors say that they are on cuda:0, and keep their values on the CPU. So the same code runs that
would run on a card, and fails where it would: an operation on tensors of both devices raises, and
so does `.numpy()` of one on cuda:0. What it cannot show: what CUDA's kernels compute, how long they
take, and what their memory costs. Needs g++ (once, some seconds) and a PyTorch built without CUDA.

Name the device "cuda:0": a bare "cuda" is looked up by the part of PyTorch that is not there.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GUARD = Path(__file__).with_name("fake_cuda_guard.cpp")


def build(folder: Path) -> Path:
    """Compile the guard, once for each folder."""
    library = folder / "fake_cuda_guard.so"
    if not library.exists():
        torch = Path(sysconfig.get_paths()["purelib"]) / "torch"
        includes = ["-I", str(torch / "include"), "-L", str(torch / "lib")]
        options = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w", *includes]
        paths = [f"-Wl,-rpath,{torch / 'lib'}", "-o", str(library)]
        command = ["g++", *options, str(GUARD), "-lc10", "-ltorch_cpu", *paths]
        subprocess.run(command, check=True)
    return library


def install(library: Path) -> None:
    """Load the guard, and let torch.cuda say that there is a card. Before torch is imported."""
    assert "torch" not in sys.modules, "the hooks are looked up once, when torch is imported"
    ctypes.CDLL(str(library))
    import bitsandbytes  # noqa: F401  (these look for CUDA's libraries if it is available)
    import peft  # noqa: F401
    import safetensors.torch
    import torch
    import transformers.modeling_utils

    answers: dict[str, Any] = {
        **{"is_available": True, "device_count": 1, "current_device": 0},
        **{"is_bf16_supported": True, "mem_get_info": (20 * 2**30, 24 * 2**30)},
        **{"memory_reserved": 0, "memory_allocated": 0, "empty_cache": None, "_lazy_init": None},
        **{"_exchange_device": 0, "_maybe_exchange_device": 0},
        **{"get_device_name": "a card that is not there", "get_device_capability": (8, 9)},
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    to_bytes: Any = safetensors.torch._to_ndarray  # on a card this copies to the host first
    safetensors.torch._to_ndarray = lambda x: to_bytes(beneath(x))
    transformers.modeling_utils.caching_allocator_warmup = lambda *args, **kwargs: None


def beneath(x: Any) -> Any:
    return getattr(x, "values_on_cpu", x)


# ---- the device ----------------------------------------------------------------------------------

MAY_MIX = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_", "set_data"}  # as on CUDA
# operations that launch no kernel: they look at a tensor in another way, or make room
FREE = set(
    "view _unsafe_view transpose permute expand t unsqueeze squeeze slice select detach alias "
    "split as_strided split_with_sizes unbind _reshape_alias lift_fresh empty empty_like new_empty "
    "empty_strided new_empty_strided set_data _local_scalar_dense".split()
)


@contextlib.contextmanager
def cuda() -> Iterator[collections.Counter]:
    """In it cuda:0 exists. Counts what would be launched, by the operation's name."""
    import torch
    from cuda_kernels import OPERATORS
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map

    launches: collections.Counter = collections.Counter()

    class OnCuda(torch.Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

        @staticmethod
        def __new__(cls, values: Any) -> Any:
            wrapper = torch.Tensor._make_wrapper_subclass(
                cls, values.size(), strides=values.stride(), dtype=values.dtype, device="cuda:0"
            )
            wrapper.values_on_cpu = values
            return wrapper

        @classmethod
        def __torch_dispatch__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return run(f, args, kwargs or {})

        def tolist(self) -> Any:
            return self.values_on_cpu.tolist()

        def storage(self) -> Any:  # whoever asks wants to know which tensors share theirs
            return self.values_on_cpu.storage()

        def untyped_storage(self) -> Any:
            return self.values_on_cpu.untyped_storage()

        def data_ptr(self) -> int:
            return self.values_on_cpu.data_ptr()

        def numpy(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

        def __deepcopy__(self, memo: Any) -> Any:
            copy = OnCuda(self.values_on_cpu.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            return torch.nn.Parameter(copy, self.requires_grad) if is_parameter else copy

    def down(x: Any) -> Any:
        if isinstance(x, torch.device) and x.type == "cuda":
            return torch.device("cpu")
        return beneath(x)

    def run(f: Any, args: Any, kwargs: Any) -> Any:
        name = f._schema.name.partition("::")[2]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, OnCuda)]
        there = [x for x in tensors if not isinstance(x, OnCuda) and x.ndim]
        if here and there and name not in MAY_MIX:
            raise RuntimeError(f"{f}: tensors of both cpu and cuda:0")
        device = kwargs.get("device")
        to_cuda = bool(here) if device is None else torch.device(device).type == "cuda"
        if name == "copy_":
            to_cuda = isinstance(args[0], OnCuda)
        if (to_cuda or here) and name not in FREE:
            launches[name] += 1
        lower_args, lower_kwargs = tree_map(down, (args, kwargs))
        if "device" in lower_kwargs and to_cuda:
            lower_kwargs["device"] = torch.device("cpu")
        lower_kwargs.pop("pin_memory", None)
        with torch._C._DisableTorchDispatch():  # some operators exist on CUDA alone
            out = OPERATORS.get(name, f)(*lower_args, **lower_kwargs)
        known = {id(x.values_on_cpu): x for x in here}
        given = {id(x) for x in tensors}

        def up(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or isinstance(x, OnCuda):
                return x
            if to_cuda:  # what came in as it is goes out as it is; memory of the host stays its own
                if id(x) in known:
                    return known[id(x)]
                return OnCuda(x.clone() if id(x) in given else x)
            return x.clone() if here and name == "_to_copy" else x

        return tree_map(up, out)

    class Everywhere(TorchDispatchMode):  # also where no tensor of cuda:0 goes in
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return run(f, args, kwargs or {})

    _quantise_to(OnCuda)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda:0") comes by here
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with Everywhere():
        yield launches


def _quantise_to(on_cuda: Any) -> None:
    """bitsandbytes' 4-bit weight is a kind of tensor itself, and cannot be ours as well."""
    import bitsandbytes as bnb
    import torch
    import transformers.integrations.bitsandbytes as loading

    def convert(self: Any, input_dict: Any, model: Any = None, **kwargs: Any) -> dict[str, Any]:
        weights = {}
        for name, value in input_dict.items():
            value = value[0] if isinstance(value, list) else value
            module, _ = loading.get_module_from_name(model, name)
            options = vars(model.get_parameter_or_buffer(name))
            with torch._C._DisableTorchDispatch():
                packed = bnb.nn.Params4bit(value.values_on_cpu, requires_grad=False, **options)
                packed = packed.to("cpu")
                plain, state = packed.detach().as_subclass(torch.Tensor), packed.quant_state
                for part, field in (
                    *((state, field) for field in ("absmax", "code", "offset")),
                    *((state.state2, field) for field in ("absmax", "code")),
                ):
                    setattr(part, field, on_cuda(getattr(part, field)))
            weight: Any = torch.nn.Parameter(on_cuda(plain), requires_grad=False)
            for field in ("compress_statistics", "quant_type", "quant_storage", "blocksize"):
                setattr(weight, field, getattr(packed, field))
            weight.quant_state, weight.bnb_quantized, module.quant_state = state, True, state
            module._is_hf_initialized = True
            weights[name] = weight
        return weights

    loading.Bnb4bitQuantize.convert = convert


# ---- the whole policy on it ----------------------------------------------------------------------


def main(folder: Path, adapter: str, checkpointing: bool) -> dict[str, Any]:
    """Load, sample, score, train, checkpoint, resume, run out of memory: what was seen."""
    import torch
    from tiny_models import random_batch

    from miniact.backends.protocol import load_policy
    from miniact.config.sections import ModelConfig
    from miniact.method.losses import GRPOLoss

    config = ModelConfig(
        path=str(folder / "model"),
        backend="torch",
        adapter=adapter,
        rank=4,
        device="cuda:0",
        gradient_checkpointing=checkpointing,
    )
    groups, loss = random_batch([9, 5], [[3, 1, 4], [6, 2]]), GRPOLoss(beta=0.1)
    prompts = [g.prompt for g in groups]

    def train(policy: Any) -> float:
        policy.forward_backward(groups, loss)
        return policy.optim_step(1e-3, 1.0)

    with cuda() as launches:
        seen: dict[str, Any] = {
            "refused": [_refused(lambda x, y=y: x + y) for y in (1, torch.ones(2))]
        }
        seen["refused"].append(_refused(lambda x: x.numpy()))
        policy: Any = load_policy(config, 0)
        seen["dtype"] = str(policy.dtype)
        policy.ends = ()  # so that every answer is as long as it may be
        counts = []
        for length in (2, 4, 5):  # the first is compared with the plain way on top
            launches.clear()
            samples = policy.sample(prompts, 3, length, 1.0, 0)
            counts.append(sum(launches.values()))
        seen["launches"] = counts[2] - counts[1]  # of one more decode step
        seen["tokens"] = [[s.tokens for s in answers] for answers in samples]
        policy.freeze_reference()
        launches.clear()
        seen["reference"] = bool(policy.logprobs(groups, reference=True))
        train(policy)
        seen["attention"] = sorted(n for n in launches if n.endswith("attention_backward"))
        policy.save_adapter(folder / adapter)
        policy.save_optimizer(folder / adapter / "optimizer.safetensors")
        seen["next"] = train(policy)
        resumed: Any = load_policy(config, 1)
        resumed.load_adapter(folder / adapter)
        resumed.load_optimizer(folder / adapter / "optimizer.safetensors")
        seen["resumed"] = train(resumed)
        inner, failures = resumed._forward_backward, [True]

        def scarce(*args: Any) -> Any:
            if failures:
                failures.pop()
                inner(*args)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return inner(*args)

        resumed._forward_backward = scarce
        seen["after out of memory"], seen["budget"] = train(resumed), resumed.budgets.training
        seen["as without"] = train(policy)
    return seen


def recipe(folder: Path, adapter: str) -> dict[str, Any]:
    """IL → ACT → RL with a tiny random model in the household world, twice: whole, and resumed."""
    from io import StringIO

    from fakes import SMALL, TAGS
    from rich.console import Console

    from miniact.config import load_config
    from miniact.experiments.pipeline import resume_run, run_recipe

    out, console = folder / f"run-{adapter}", Console(file=StringIO())
    settings = [
        *(*SMALL, *TAGS, f"model.path={folder / 'model'}", f"model.adapter={adapter}"),
        *("model.device=cuda:0", "model.backend=torch", "model.rank=4", "pairs.source=admissible"),
        # a random model's answers hold nothing: what it learns from is the KL term
        *("stage.act.beta=0.1", "stage.rl.beta=0.1", "stage.act.max_tokens=6"),
        *("stage.rl.max_tokens=6", "eval.max_tokens=6", "eval.judge_max_tokens=6", "log.to=[]"),
    ]
    with cuda():
        whole = run_recipe(load_config("household-plain", settings), out, console)
        (out / "results.json").unlink()
        (out / "stages" / "3-rl" / "eval.json").unlink()
        again = resume_run(out, console)
    return {"stages": list(whole["results"]), "same": again["results"] == whole["results"]}


def _refused(f: Any) -> bool:
    import torch

    try:
        f(torch.ones(2, device="cuda:0"))
    except (RuntimeError, TypeError):
        return True
    return False


if __name__ == "__main__":
    where = Path(sys.argv[1])
    install(build(where))
    if "recipe" in sys.argv:
        print(json.dumps(recipe(where, sys.argv[2])))
    else:
        print(json.dumps(main(where, sys.argv[2], "checkpointing" in sys.argv)))
