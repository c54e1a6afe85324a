"""The MLX backend: the only place where mlx appears."""
