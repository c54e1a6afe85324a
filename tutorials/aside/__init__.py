"""What stands aside in the tutorials: plots and small tools that are no part of the lesson.

pictures.py  one look for all plots: panels, shares with their intervals, noisy curves
drawings.py  the whole figures of 05, 06, 07, 09 and 10
weights.py   09: adapters and gradients of both backends under the same names
measure.py   10: the peak of memory of real training steps
look.py      00: a run folder as plain text, the stages' picture
qlora.py     03: PEFT's layer, a wider tiny model, training
pairs.py     04: kinds of mistakes, replays, prices
"""
