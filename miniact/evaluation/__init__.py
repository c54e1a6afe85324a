"""Measuring: episodes, success, judgement."""
