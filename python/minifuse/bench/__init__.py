"""The laboratory: engines against each other, ops against PyTorch, figures against float64."""
