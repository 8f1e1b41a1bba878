"""The life of a deployment: its coordinator, its replicas, their epochs and ranks."""
