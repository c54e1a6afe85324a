"""ALFWorld: the real engine, games of our own, experts."""
