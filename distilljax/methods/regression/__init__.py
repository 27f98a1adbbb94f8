"""Methods that regress a field on data: teachers and baselines."""
