"""miniact: Agentic Critical Training (ACT) in code that is meant to be read.

Start with `types.py` (what flows), then `stages/act.py` (the idea), then `grpo.py` and `losses.py`
(the mathematics), then `backends/torch_policy.py` (the only place where PyTorch appears).
"""

__version__ = "0.1.0"
