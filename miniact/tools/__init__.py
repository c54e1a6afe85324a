"""What one does with a config, a run or an adapter, beside training."""
