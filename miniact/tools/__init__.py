"""What one does with a config, a run or an adapter, beside training.

plan.py     memory and time of a config, before anything is loaded
cost.py     tokens and FLOPs of a step, from the model's shape
export.py   an adapter for mlx-lm, or merged into a model of its own
play.py     look at what a run made; act in a world by hand, or watch
report/     one HTML page of a run or of a comparison
"""
