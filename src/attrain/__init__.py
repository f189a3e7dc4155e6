"""Train PyTorch models with attribution."""
