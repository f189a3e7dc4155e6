"""Measures of trained models: pure functions of tensors, arrays or a model."""
