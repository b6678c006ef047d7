"""Normalizing flows: bijections, families made of them, the density that they push forward, and the method."""
