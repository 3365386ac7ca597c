"""What a run would need and cost on a slice that is not there: memory, arithmetic, traffic, time."""
