"""The command line.

main.py     training, measuring, looking: run, il, act, rl, collect, pairs, eval, show, play, export
tools.py    plan, import, compare, report, alfworld-games
common.py   one-line errors; from CONFIG, KEY=VALUE and options to one config
"""
