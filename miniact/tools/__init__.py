"""What one does with a config, a run or an adapter, beside training.

plan.py     memory and time of a config, before anything is loaded
cost.py     tokens, FLOPs and weights, from the model's shape
times.py    how long a pass takes on a device
devices.py  what there is to compute on: this machine, or a card by its name
doctor.py   does all that miniact needs work here?
agent.py    a trained model in one's own loop; states as they come from outside
ask.py      the same as a command
export.py   an adapter for mlx-lm, or merged into a model of its own
play.py     look at what a run made; act in a world by hand, or watch
thoughts.py what a model thinks after each stage, counted and side by side
report/     one HTML page of a run or of a comparison
"""
