"""Makes a smaller checkpoint of a checkpoint, layer by layer: quantised, sparse, or with fewer heads and layers."""
