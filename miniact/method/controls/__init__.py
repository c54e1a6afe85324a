"""What ACT is compared with, and options of ours that are off.

choice_sft.py    cross-entropy on the right choice, the same pairs
dpo.py           direct preference optimisation, the same pairs
reflect.py       Early Experience: imitate reflections
reflections.py   how reflections are made: alternatives executed, reasons sampled
refresh.py       for act: alternatives sampled anew from the current policy
"""
