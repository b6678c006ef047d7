"""Stein particle samplers: SVGD, mirrored SVGD, Stein variational mirror descent and natural gradients."""
