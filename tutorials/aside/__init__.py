"""What stands aside in the tutorials: plots and small tools that are no part of the lesson.

pictures.py  one look for all plots: panels, shares with their intervals, noisy curves
"""
