"""From (model, topology) to a plan, and from a plan to the bytes each rank reads. Imports neither Ray nor CUDA."""
