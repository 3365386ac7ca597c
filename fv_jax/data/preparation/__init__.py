"""From footage to shards: a plan of units, shards as functions of their units, and what runs these functions."""
