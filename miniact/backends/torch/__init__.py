"""The PyTorch backend: the only place where torch appears."""
