"""Trainings of h and g: their jobs, their files, and the data sets and paired vectors that they learn from."""
