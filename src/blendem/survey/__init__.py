"""What is drawn: instruments, populations, GalSim fields, detection and grouping."""
