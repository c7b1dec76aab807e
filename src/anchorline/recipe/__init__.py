"""A recipe: the one YAML file of a run, its stages, and the run folder that they write."""

from __future__ import annotations

from anchorline.recipe.config import Prompts, Recipe, load_recipe
from anchorline.recipe.run import Summary, run

__all__ = ["Prompts", "Recipe", "Summary", "load_recipe", "run"]
