"""What networks are trained for, one package for each task."""
