"""The preference predictor: networks, episodes, losses and a node's local training."""
