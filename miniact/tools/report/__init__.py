"""`miniact report`: one HTML page of a run or of a comparison.

page.py      what the page holds; writes it as one file that needs no network
quiz.py      held-out questions for the reader, and what the critic answered
samples.py   rollout groups, episodes and pairs, thinned to fit
"""
