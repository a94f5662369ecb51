"""Attention with any sharing of its projections: the layer, its kernels, and the reference they are held to."""
