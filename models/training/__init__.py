"""Training of encoders, side-information models and transformations; needs the extra `training` (kornia)."""
