"""Plans memory, FLOPs, communication and time of a run on hardware that need not be attached."""
