"""Training: lanes through sequences, a recipe for each task, one loop."""
