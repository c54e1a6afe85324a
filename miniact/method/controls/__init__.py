"""What ACT is compared with."""
