"""What a model must do, once for each array library: nothing else imports torch or mlx.

protocol.py   the policy: all that miniact asks of a model, and the only door to a backend
launch.py     whether miniact was started as one of several processes
parallel.py   several processes, one policy: each computes a share of every call
messages.py   what one process tells another
models.py     where a model comes from: a folder, a GGUF file, a package, the hub, built in
layout.py     groups → rows of tokens; the only place where targets are shifted
tree.py       what begins alike stands in a row once: found, divided, and its attention in parts
sampling.py   what is sampled together, the random numbers, the one decode loop
held.py       keys of prompts sampled from before: what a new prompt need not compute again
memory.py     this process's memory, and what to do where memory runs out
checks.py     what `miniact doctor` finds out about a device
trial.py      whether the fast ways are right for this model, tried when it is loaded
targets.py    which layers LoRA sits beside
common.py     checks of what is to be loaded, alike for both
torch/        PyTorch
mlx/          MLX, the same on a Mac
tiny/         a model that ships with miniact and answers at once, made by dev/make_tiny.py
thinker/      the one that reasons before it answers, made by dev/make_thinker.py
"""

import logging
import warnings

for _name in ("transformers", "peft", "bitsandbytes"):  # before they are imported: some log then
    logging.getLogger(_name).setLevel(logging.ERROR)

# about names that transformers 6 will drop; nothing a user could act on
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
