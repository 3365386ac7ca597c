"""Where things live: the mesh, the table from logical to mesh axes, and arrays on them."""
