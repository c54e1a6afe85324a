"""The configuration: every key with its meaning."""
