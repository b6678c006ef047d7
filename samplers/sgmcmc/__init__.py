"""Samplers that see a mini-batch of the data at each step."""
