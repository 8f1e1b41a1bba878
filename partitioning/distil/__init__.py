"""Offline distillation: a small model learns to predict as a large one does."""
