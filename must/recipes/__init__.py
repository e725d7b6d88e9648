"""The recipes, one file each: what trains on what, in which order, and what is compared. Each is a value, `RECIPE`."""
