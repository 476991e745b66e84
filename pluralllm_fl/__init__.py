"""PluralLLM-FL: federated pluralistic alignment on Flower."""

__version__ = "0.1.0"
