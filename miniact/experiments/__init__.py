"""Run a recipe; compare recipes over seeds."""
