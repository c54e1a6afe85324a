"""Trajectories on disk, and the logs of other agents."""
