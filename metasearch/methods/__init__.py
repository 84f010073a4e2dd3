"""A name -> a (strategy, objective) pair, one short file each; a strategy alone is a method with `train`."""
