"""What stands around the loop of a training run: its folder, its data, its start, its checkpoints and records."""
