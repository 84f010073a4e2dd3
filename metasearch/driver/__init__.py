"""WHERE AND WHEN IT RUNS: the only room that imports ray."""
