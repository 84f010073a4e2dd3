"""A space for tests of the driver: a thousand configs."""
from metasearch.space import Choice, Int, Space

SPACE = Space({"x": Int(0, 99), "y": Int(0, 4), "kind": Choice(("a", "b"))})
