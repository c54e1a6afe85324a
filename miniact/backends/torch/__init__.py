"""The PyTorch backend: the only place where torch appears.

policy.py      sampling, log-probabilities, gradients, steps
load.py        a Hugging Face model with QLoRA, LoRA or all weights to train
sample.py      one prefill per prompt, then all answers a token at a time
keys.py        keys and values while sampling: a prompt's once for all its answers
attention.py   how a model is told to let tree.py and keys.py attend
tree.py        attention over a tree of what begins alike, without a mask over everything
parts.py       the parts of it: stretches of tokens, each of which sees another
kernels.py     how a device computes a part: flash attention and others, and back
plain.py       the same from products and a softmax, anywhere
head.py        from hidden states to log-probabilities, in pieces
fast.py        LoRA and the gated MLP in fewer passes over memory
device.py      which device, and in which precision
optimizer.py   AdamW, and its state as a file
memory.py      the memory of the device
parallel.py    several processes: their messages, the sum of their gradients
checks.py      does it do what miniact needs of it
probe.py       how fast this machine is, and how much memory is free
"""
