"""Gaussian variational inference: forward–backward steps in Bures–Wasserstein space, and what it is compared with."""
