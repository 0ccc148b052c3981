"""Networks and mathematics: transformation, backbones, side-information, preprocessing, artifacts, metrics, training.
Runs without a database, a broker or settings; imports neither `service` nor `workers`."""
