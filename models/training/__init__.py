"""Training of encoders, side-information models and transformations; ArcFace needs the extra `training`."""
