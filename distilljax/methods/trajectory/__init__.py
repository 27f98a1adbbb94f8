"""Students of the teacher's trajectories."""
