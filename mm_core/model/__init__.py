"""The network, its files and predictions."""
