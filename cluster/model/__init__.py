"""What a model is: geometry, state, precision, where its files are."""
