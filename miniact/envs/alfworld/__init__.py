"""ALFWorld: its own engine, games of ours or the official ones, experts.

env.py      the environment
engine.py   the package's engine, without its waits
expert.py   explores until the object is found, then does what the task asks
games.py    new games from the rooms that the package describes
"""
