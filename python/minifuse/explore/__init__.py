"""Explore a collection of texts: clusters of similar meaning, named, on a map that is one page."""

from minifuse.explore.clusters import Exploration, explore, write_png
from minifuse.explore.page import write_page

__all__ = ["Exploration", "explore", "write_page", "write_png"]
