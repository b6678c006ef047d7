"""Samplers whose agents hold the data and exchange iterates only."""
