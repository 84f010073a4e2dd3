"""WHAT PEOPLE SEE: the only room that imports mlflow."""
