"""Geometry shared by targets and samplers: proximal operators."""

from .prox import L1 as L1
