"""What surrounds the trainer: work directory, data, initialization, checkpoint policy, launch record."""
