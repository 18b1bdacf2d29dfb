"""Models: the field, its flow, the memories and the cell, in torch; training and checkpoints."""
