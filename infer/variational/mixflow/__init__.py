"""Mixed variational flows: i.i.d. draws, exact augmented densities and evidence bounds without a network to train."""
