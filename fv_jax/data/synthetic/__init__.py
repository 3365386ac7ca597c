"""Generated data: clips of captioned sprites that move over a landscape."""
