"""metasearch: distributed hyperparameter and architecture search for meta-learning."""

__version__ = "0.1.0"
