"""What can be done to tensors: lazy algebra, kernels, merge methods."""
