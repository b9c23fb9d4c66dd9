"""Table rows to torch batches."""
