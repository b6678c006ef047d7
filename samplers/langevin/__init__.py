"""Langevin samplers for kinks and constraints: Bregman proximal, mirror, preconditioned, proximal and primal–dual."""
