"""Many fits of one shape: calibration by simulation, comparison of models, studies of methods."""
