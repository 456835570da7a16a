"""Deployment: a student exported to an engine without PyTorch, and what its speed and memory are."""
