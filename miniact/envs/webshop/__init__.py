"""WebShop: a compact re-implementation that reads the official files."""
