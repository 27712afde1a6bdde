"""What steps a loaded model for everybody who asks: admission, batches, answers."""
