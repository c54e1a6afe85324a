"""The MLX backend: the only place where mlx appears. Each file is the twin of PyTorch's.

policy.py    sampling, log-probabilities, gradients, steps
load.py      a Hugging Face model with QLoRA, LoRA or all weights to train
sample.py    each prompt once, its cache widened to a row per answer
tree.py      attention over a tree of what begins alike
head.py      from hidden states to log-probabilities, in pieces
parallel.py  several processes: their messages, the sum of their gradients
checks.py    does it do what miniact needs of it
probe.py     how fast this machine is, and how much memory is free
"""
