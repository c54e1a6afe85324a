"""Run a recipe; compare recipes over seeds.

pipeline.py   from a config to results.json, one plain file after the other
start.py      what can be wrong with a run, told in the first second
data.py       what a run learns from: made once, then read back
settle.py     data against config, before anything is made
lengths.py    how many tokens states take, and those that are too long
results.py    the end of a run: a table for the terminal, what it says, and curves
words.py      what rose and what fell, in sentences; what the words mean
columns.py    a table in as many parts as a terminal's width asks for
recipes.py    what a comparison compares: recipes by name, seeds, the rows of the paper
compare.py    recipes × seeds in one folder, common parts once
budget.py     the largest comparison that fits a time limit
table.py      the table of a comparison: intervals, paired differences
reading.py    what a run folder or a comparison folder holds
metrics.py    what every logged figure means: metrics.txt, read
"""
