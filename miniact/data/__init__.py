"""Trajectories on disk, and the logs of other agents.

trajectories.py   expert trajectories: read, write, index, collect

importing.py      logs → trajectories: `miniact import`, in the order of the files below
containers.py     files → their rows, whatever they come in, a piece at a time
log.py            rows → dialogues: each file's format is found
readers/          the formats: how each is recognised, and who reads it
dialogue.py       the one form between all of them: who said, called or answered what
messages.py       one vocabulary for messages and their parts → turns
reply.py          what an agent wrote → its thought, its calls, its action
outcomes.py       what a log says about success
folding.py        a dialogue → one row of trajectories.jsonl
checks.py         what only the whole log shows: repeats, openings, one task in all rows
samples/          small logs that ship with miniact, made by dev/make_logs.py
"""
