"""Maps to the data whose values agree along a trajectory."""
