"""Measuring what a policy can do.

episodes.py    policy × environment → episodes, many at once
evaluate.py    success, next-action and judgement accuracy, with intervals
expert.py      how far the environment's own expert gets
thoughts.py    what a model thinks: kinds of sentences, their truth, whether it does what it says
rates.py       shares with their intervals
intervene.py   the rationale intervention: does a choice follow from its reasoning?
reasoning.py   general reasoning, by lm-evaluation-harness
"""
