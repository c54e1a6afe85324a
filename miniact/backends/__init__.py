"""One file per array library. Nothing outside this folder imports torch or mlx."""

import logging
import warnings

for _name in ("transformers", "peft", "bitsandbytes"):  # before they are imported: some log then
    logging.getLogger(_name).setLevel(logging.ERROR)

# raised inside PEFT, about a name that transformers 6 will drop; nothing a user could act on
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
