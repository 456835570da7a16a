"""Deployment: a student exported to engines without PyTorch, and what its speed and cost are."""
