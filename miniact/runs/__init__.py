"""What a run leaves on disk, and what it shows meanwhile.

files.py      files that appear whole or not at all; JSON lines: one reader, one writer
folder.py     a run's folder: what is in it, its lock, how it stops and goes on
log.py        a stage's metrics, samples and checkpoints
loggers.py    the same metrics to TensorBoard, trackio, Weights & Biases
progress.py   a bar, or plain lines where there is no terminal
"""
