"""Ways to run a user tower: the plain one is the reference, the others give its answer sooner."""
